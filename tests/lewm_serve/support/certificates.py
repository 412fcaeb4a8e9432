"""Certificates for the tests' servers and clients."""

import datetime
import ssl
from pathlib import Path
from typing import NamedTuple

import grpc
import trustme

HOST = "127.0.0.1"
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


class Identity(NamedTuple):
    """A certificate with its key: for Python's ``ssl``, and for gRPC."""

    certificate: bytes
    key: bytes

    @classmethod
    def of(cls, issued: trustme.LeafCert) -> "Identity":
        """The content of a certificate that trustme has issued."""
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return cls(chain, issued.private_key_pem.bytes())


class Authority:
    """What signs certificates, and clients trust."""

    def __init__(self) -> None:
        self._authority = trustme.CA()

    @property
    def certificate(self) -> bytes:
        """Its own certificate, in PEM form."""
        return self._authority.cert_pem.bytes()

    def issue(self, *names: str, expired: bool = False) -> Identity:
        """A certificate for this machine, and for other host names."""
        end = LONG_AGO if expired else None
        start = LONG_AGO - datetime.timedelta(days=365) if expired else None
        return Identity.of(
            self._authority.issue_cert(HOST, *names, not_before=start, not_after=end)
        )


class CertificateFiles(NamedTuple):
    """The files of a server."""

    certificate: Path
    key: Path
    client_ca: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "CertificateFiles":
        """The files' places."""
        return cls(folder / "server.pem", folder / "server.key", folder / "clients.pem")

    def write(self, identity: Identity) -> None:
        """Replace the server's certificate and its key."""
        self.certificate.write_bytes(identity.certificate)
        self.key.write_bytes(identity.key)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a server with a certificate."""
        return ("--tls-cert", str(self.certificate), "--tls-key", str(self.key))


def client_context(
    folder: Path, authority: Authority, identity: Identity | None = None
) -> ssl.SSLContext:
    """What a client of Python's ``ssl`` uses. It trusts the authority."""
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if identity is not None:
        file = folder / "client.pem"
        file.write_bytes(identity.key + identity.certificate)
        context.load_cert_chain(file)
    return context


def channel_credentials(
    authority: Authority, identity: Identity | None = None
) -> grpc.ChannelCredentials:
    """What a gRPC client uses. It trusts the authority."""
    key, certificate = (None, None) if identity is None else (identity.key, identity.certificate)
    return grpc.ssl_channel_credentials(authority.certificate, key, certificate)
