"""`python -m infra.mail --port P --cert PEM --key PEM --box DIR`: an SMTP server on loopback that keeps what it is sent.

STARTTLS (RFC 3207) is required, TLS 1.2 at least. A message is answered 250 once it is a file of the box, whole. Prints `ready`.
"""

import argparse
import os
import ssl
import sys
import threading
import uuid
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


class Box:
    """aiosmtpd's handler: one file a message, `<time order>.eml`, the envelope's recipients on top."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._lock, self._count = folder, threading.Lock(), len(list(folder.glob("*.eml")))

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        head = "".join(f"X-Envelope-To: {name}\r\n" for name in envelope.rcpt_tos).encode()
        with self._lock:
            self._count += 1
            path = self._folder / f"{self._count:06d}-{uuid.uuid4().hex[:8]}.eml"
            hidden = path.with_suffix(".new")
            with hidden.open("wb") as stream:
                stream.write(head + content)
                stream.flush()
                os.fsync(stream.fileno())
            hidden.replace(path)
        return "250 kept"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.mail", description="The demo's mail server.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--box", type=Path, required=True)
    options = parser.parse_args()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.cert, options.key)
    server = Controller(
        Box(options.box), hostname="127.0.0.1", port=options.port, tls_context=context, require_starttls=True, ident="demo mail"
    )
    server.start()
    print("ready", flush=True)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
