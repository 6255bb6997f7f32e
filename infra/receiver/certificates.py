"""The receiver's certificate, key and CA bundle as they are on disk now: each new connection is served by them, no restart."""

import logging
import ssl
import threading
from pathlib import Path

from blocks.endpoint import NotingSocket, TlsSettings
from rapha.errors import ConfigurationError

log = logging.getLogger("rapha.receiver")
Stamp = tuple[int, ...] | None


class Certificates:
    """The TLS context of connections that come in; it is made anew when one of its files is another. Threads may share it."""

    def __init__(self, settings: TlsSettings) -> None:
        """Raises `ConfigurationError` tls-…: there is no last good one yet."""
        self._settings, self._lock = settings, threading.Lock()
        self._seen = self._stamps()
        self._context = self._made()

    def context(self) -> ssl.SSLContext:
        """Of the files as they are; of the last good ones where they cannot be used, or one of a pair is still to come."""
        with self._lock:
            stamps = self._stamps()  # before they are read: what changes meanwhile is seen at the next connection
            if stamps != self._seen:
                self._seen = stamps
                try:
                    self._context = self._made()
                except ConfigurationError as error:
                    log.error("%s: the last good ones stay in use", ", ".join(error.codes))
            return self._context

    def _made(self) -> ssl.SSLContext:
        context = self._settings.server()
        context.sslsocket_class = NotingSocket  # it bounds a handshake as a whole, however it drips
        return context

    def _stamps(self) -> tuple[Stamp, ...]:
        held = self._settings
        return tuple(_stamp(path) for path in (held.cert_file, held.key_file, held.ca_bundle) if path is not None)


def _stamp(path: Path) -> Stamp:
    """What changes when a file is replaced or written to; of what a link points to."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
