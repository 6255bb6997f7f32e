"""One PACS as it is configured: its address, its names, how it is secured, and which of its services are used.

TLS settings are read anew for each association: a certificate that was replaced on disk is used without a restart.
"""

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rapha.errors import ConfigurationError

TlsVersion = Literal["TLS_1_3", "TLS_1_2"]
ReceiverTls = Literal["TLS_1_3", "TLS_1_2", "TLS_1_2_AND_1_3"]  # one port for all archives: the last where only some are old
Retrieve = Literal["auto", "C-GET", "C-MOVE", "WADO-RS"]
Store = Literal["auto", "C-STORE", "STOW-RS"]
# The suites of BCP 195 (RFC 9325 section 4.2) for an endpoint that cannot do TLS 1.3, as PS3.15 B.12 asks for.
BCP_195 = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
BCP_195 += ":DHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256"


class NotingSocket(ssl.SSLSocket):
    """Keeps why a handshake failed, and bounds it as a whole: the association's library does neither."""

    def do_handshake(self, block: bool = False) -> None:
        context = self.context
        seconds = context.seconds if isinstance(context, NotingContext) else 60.0
        timer = threading.Timer(seconds, _shut, [self])
        timer.daemon = True
        timer.start()
        try:
            super().do_handshake(block)
        except OSError as error:
            if isinstance(context, NotingContext):
                context.failure = tls_code(error)
            raise
        finally:
            timer.cancel()


def _shut(held: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(held, socket.SHUT_RDWR)


class NotingContext(ssl.SSLContext):
    """A context whose sockets note why their handshake failed, as one of the codes of `tls_code`. seconds: of a handshake."""

    failure: str | None = None
    seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """TLS for one endpoint (PS3.15 annex B.12).

    ca_bundle: who is trusted, and nobody else; cert_file, key_file: our own, shown when the peer asks (mutual); version: TLS 1.3
    alone, or TLS 1.2 alone as the named exception, or both where a listener's peers differ; server_name: the name in the peer's
    certificate, the host's when None.
    """

    ca_bundle: Path
    cert_file: Path | None = None
    key_file: Path | None = None
    version: ReceiverTls = "TLS_1_3"
    mutual_auth: bool = True
    server_name: str | None = None

    def client(self, seconds: float = 60.0) -> NotingContext:
        """A context for connections that we open; a handshake has `seconds`. Raises `ConfigurationError` tls-…."""
        context = NotingContext(ssl.PROTOCOL_TLS_CLIENT)
        context.seconds = seconds
        context.sslsocket_class = NotingSocket
        self._load(context)
        return context

    def server(self) -> ssl.SSLContext:
        """A context for associations that we accept: the peer shows a certificate where the endpoint is mutual."""
        if self.cert_file is None:
            raise ConfigurationError(["tls-certificate-missing"], "a listener with TLS needs a certificate and its key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        context.verify_mode = ssl.CERT_REQUIRED if self.mutual_auth else ssl.CERT_NONE
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        only = ssl.TLSVersion.TLSv1_3 if self.version == "TLS_1_3" else ssl.TLSVersion.TLSv1_2
        context.minimum_version = context.maximum_version = only
        if self.version == "TLS_1_2_AND_1_3":
            context.maximum_version = ssl.TLSVersion.TLSv1_3
        if self.version != "TLS_1_3":
            context.set_ciphers(BCP_195)
        try:
            context.load_verify_locations(cafile=str(self.ca_bundle))
            if self.cert_file is not None:
                context.load_cert_chain(str(self.cert_file), str(self.key_file or self.cert_file))
        except (OSError, ssl.SSLError) as error:
            said = f"certificate, key or CA bundle of an endpoint cannot be used ({type(error).__name__})"
            raise ConfigurationError(["tls-files-unusable"], said) from None
        if self.mutual_auth and self.cert_file is None:
            raise ConfigurationError(["tls-certificate-missing"], "mutual_auth needs cert_file and key_file")


def tls_code(error: OSError) -> str:
    """Why a handshake failed, as a code: by OpenSSL's verification codes (X509_V_ERR_…), else by kind."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return {10: "tls-certificate-expired", 62: "tls-name-differs", 64: "tls-name-differs"}.get(
            error.verify_code, "tls-certificate-untrusted"
        )
    return "tls-handshake-failed"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One PACS. Times in seconds, `max_pdu` in bytes; `max_results`: answers beyond which a query is taken for cut short.

    pool_size: associations open with it at once, in one process, None for any number; timezone: its clock's, by its IANA name,
    None where it is not known; priority: of studies that a poll finds there.
    ae_title: the archive's; calling_ae_title: ours; move_destination: the AE title under which the archive knows our receiver.
    connect_seconds: to reach it and agree on an association; idle_seconds: without a byte; move_idle_seconds: the same during a
    C-MOVE, in which an archive may say nothing while it sends elsewhere (PS3.4 C.4.2.3.1); whole_seconds: one operation, however
    it drips.
    """

    name: str
    host: str
    port: int
    ae_title: str
    calling_ae_title: str
    vendor: str = "Generic"
    tls: TlsSettings | None = None
    dicomweb_url: str | None = None
    dicomweb_token: str | None = None
    retrieve: Retrieve = "auto"
    store: Store = "auto"
    move_destination: str = "RAPHA"
    connect_seconds: float = 10.0
    idle_seconds: float = 60.0
    move_idle_seconds: float = 300.0
    whole_seconds: float = 3600.0
    max_pdu: int = 131072
    max_results: int = 500
    pool_size: int | None = None
    timezone: str | None = None
    priority: str = "medium"

    def __repr__(self) -> str:
        return f"Endpoint({self.name})"  # a token may be among the rest
