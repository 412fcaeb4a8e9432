"""The certificates of both ports. They are read again when their files change.

A new connection gets the certificates that are in the files now. Files that cannot be used, or a
certificate and a key that do not belong together, change nothing, and the log says so.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from lewm_serve.access.file_watch import FileWatch
from lewm_serve.observability.logging import log
from lewm_serve.settings import Settings, SettingsError


class TlsError(ValueError):
    """TLS is not possible with these settings and files. The message names the setting."""


@dataclass(frozen=True)
class _Loaded:
    """What was in the files: for HTTP, and for gRPC."""

    context: ssl.SSLContext
    configuration: grpc.ServerCertificateConfiguration


class Certificates:
    """The server's certificate with its key, and what signs the certificates of clients.

    gRPC asks for them in threads of its own.

    Args:
        certificate: a PEM file, the server's certificate first, then those that signed it.
        key: a PEM file with its private key, without a passphrase.
        client_ca: a PEM file. Clients need a certificate that one of these has signed. None:
            clients need none.

    Raises:
        TlsError: the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()
        self._watch = FileWatch(*filter(None, (certificate, key, client_ca)))
        self._loaded = self._load()

    def context(self) -> ssl.SSLContext:
        """What a new HTTP connection uses."""
        return self._current().context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """What the gRPC server uses. It asks for the files' content at each new connection."""
        given = self._loaded

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            current = self._current()
            if current is given:
                return None
            given = current
            return current.configuration

        return grpc.dynamic_ssl_server_credentials(
            given.configuration,
            changed,  # type: ignore[arg-type]  # it may return None, which the stub does not know
            require_client_authentication=self._client_ca is not None,
        )

    def _current(self) -> _Loaded:
        with self._lock:
            if self._watch.has_changed():
                self._load_again()
            return self._loaded

    def _load_again(self) -> None:
        try:
            self._loaded = self._load()
        except TlsError as error:
            log.error("the certificates cannot be used, the old ones stay", error=str(error))
        else:
            log.info("certificates read")

    def _load(self) -> _Loaded:
        chain, key = _read("TLS_CERT", self._certificate), _read("TLS_KEY", self._key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key, _no_passphrase)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise TlsError(
                f"LEWM_TLS_CERT {self._certificate} and LEWM_TLS_KEY {self._key}: {_why(error)}; "
                "expected a certificate and its private key in PEM form"
            ) from None
        signers = None
        if self._client_ca is not None:
            signers = _read("TLS_CLIENT_CA", self._client_ca)
            try:
                context.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError) as error:
                raise TlsError(
                    f"LEWM_TLS_CLIENT_CA {self._client_ca}: {_why(error)}; "
                    "expected certificates in PEM form"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        configuration = grpc.ssl_server_certificate_configuration([(key, chain)], signers)
        return _Loaded(context, configuration)


def load_certificates(settings: Settings) -> Certificates | None:
    """The certificates that the settings name. None: both ports speak in the clear.

    Raises:
        SettingsError: a setting is missing.
        TlsError: a file cannot be used.
    """
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is not None and key is not None:
        return Certificates(certificate, key, client_ca)
    for name in ("tls_cert", "tls_key", "tls_client_ca"):
        if getattr(settings, name) is not None:
            required = {"LEWM_TLS_CERT": certificate, "LEWM_TLS_KEY": key}
            missing = [other for other, value in required.items() if value is None]
            raise SettingsError(f"LEWM_{name.upper()} is set, so set {' and '.join(missing)} too")
    return None


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"LEWM_{name} {path}: {(error.strerror or str(error)).lower()}") from None


def _no_passphrase() -> NoReturn:
    """Otherwise OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a passphrase")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)
