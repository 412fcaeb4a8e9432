"""A server that asks its clients for a key and a certificate, for commands that reach it."""

from pathlib import Path
from typing import NamedTuple

from tests.lewm_serve.support.certificates import Authority, CertificateFiles
from tests.lewm_serve.support.keys import add_key


class Protection(NamedTuple):
    """What the server and the commands need.

    Attributes:
        server_flags: flags of `lewm serve`.
        tls_options: options of a command: the authority to trust, and the client's certificate.
        key_options: options of a command: the file of its key.
        api_key: the key, with the roles `infer` and `read`.
    """

    server_flags: tuple[str, ...]
    tls_options: tuple[str, ...]
    key_options: tuple[str, ...]
    api_key: str

    @classmethod
    def in_folder(cls, folder: Path) -> "Protection":
        """Write all files into a folder."""
        files, authority, clients = CertificateFiles.in_folder(folder), Authority(), Authority()
        files.write(authority.issue())
        files.client_ca.write_bytes(clients.certificate)
        ca, certificate, key = (folder / name for name in ("ca.pem", "client.pem", "client.key"))
        keys, api_key_file = folder / "keys", folder / "api-key"
        ca.write_bytes(authority.certificate)
        identity = clients.issue()
        certificate.write_bytes(identity.certificate)
        key.write_bytes(identity.key)
        api_key = add_key(keys, "client", "infer", "read")
        api_key_file.write_text(f"{api_key}\n")
        protection = ("--tls-client-ca", str(files.client_ca), "--keys-file", str(keys))
        tls_options = ("--tls-ca", ca, "--tls-cert", certificate, "--tls-key", key)
        return cls(
            server_flags=(*files.flags, *protection),
            tls_options=tuple(map(str, tls_options)),
            key_options=("--api-key-file", str(api_key_file)),
            api_key=api_key,
        )
