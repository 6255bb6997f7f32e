"""The hospital's mail server: submission over STARTTLS (RFC 6409, RFC 3207), one mail to one person at a time.

Nothing is said to a server before it has proven its name under TLS 1.2 or later, the login least of all. Every failure is a
`PeerError` mail-…, and the server's own words go no further. A mail is taken once the server has answered its last dot with 250.
"""

import contextlib
import os
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from io import BufferedReader
from pathlib import Path
from typing import Any

from blocks.endpoint import BCP_195, tls_code
from blocks.profile import Profile, secret
from policies.notice import ESCALATE_AFTER, GROUPS, OPERATORS, NoticeRules, is_address
from rapha.errors import ConfigurationError, PeerError, Refusal

MAX_REPLY = 1 << 16  # bytes of one reply of the server's
QUIT_SECONDS = 2.0  # the mail is taken by then: its end is only a courtesy
_POLICY = SMTP.clone(max_line_length=998)  # RFC 5322 section 2.1.1; an address or Message-ID is never folded, nor encoded
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9.]{1,100}@[A-Za-z0-9.-]{1,255}>")


@dataclass(frozen=True, kw_only=True)
class MailServer:
    """Where and as whom mail is sent. ca_bundle: who is trusted, and nobody else; this machine's authorities when None.

    idle_seconds: to connect, and without a byte; whole_seconds: one mail, however the server drips.
    """

    host: str
    port: int = 587
    from_address: str
    ca_bundle: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    idle_seconds: float = 15.0
    whole_seconds: float = 60.0

    def send(self, to: str, subject: str, body: str, message_id: str, *, urgent: bool = False) -> None:
        """Sends one mail; the server has it when this returns.

        `Refusal` mail-header for an address, subject or Message-ID that is none. `PeerError` mail-recipient-refused and
        mail-content-refused (for good), mail-recipient-later and mail-content-later (for now), mail-unfinished (nobody knows
        whether the server has it); the others are not about this mail: mail-unreachable, mail-timeout, mail-broken-off,
        mail-no-starttls, mail-certificate-expired, mail-certificate-untrusted, mail-name-differs, mail-handshake-failed,
        mail-login, mail-sender-refused, mail-protocol, mail-unavailable.
        """
        message = self._message(to, subject, body, message_id, urgent)
        line = _Line(self)
        try:
            line.begin()
            line.step = "mail"
            line.sendmail(self.from_address, [to], message)
            line.end()
        except OSError as error:
            raise PeerError(_code(error, line), f"the mail server failed at its {line.step}", peer="mail") from None
        finally:
            line.close()

    def check(self) -> None:
        """Connects, secures the line and logs in, and sends nothing. `PeerError` as above."""
        line = _Line(self)
        try:
            line.begin()
            line.end()
        except OSError as error:
            raise PeerError(_code(error, line), f"the mail server failed at its {line.step}", peer="mail") from None
        finally:
            line.close()

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later, the certificate and its name checked. `ConfigurationError` mail-ca-bundle."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(BCP_195)
        try:
            if self.ca_bundle is None:
                context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            else:
                context.load_verify_locations(cafile=str(self.ca_bundle))
        except OSError as error:
            raise ConfigurationError(["mail-ca-bundle"], f"notifications.email.ca_bundle: {type(error).__name__}") from None
        return context

    def _message(self, to: str, subject: str, body: str, message_id: str, urgent: bool) -> bytes:
        if not (is_address(to) and is_address(self.from_address) and _MESSAGE_ID.fullmatch(message_id)):
            raise Refusal(["mail-header"], "an address or a Message-ID is none")
        if not (subject.isascii() and subject.isprintable() and 0 < len(subject.strip()) == len(subject) <= 200):
            raise Refusal(["mail-header"], "a mail's subject is one line of printable ASCII")
        made = EmailMessage(policy=_POLICY)
        made["From"], made["To"], made["Subject"] = self.from_address, to, subject
        made["Date"], made["Message-ID"] = formatdate(localtime=True), message_id
        made["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday reply comes back
        if urgent:
            made["Importance"], made["Priority"] = "high", "urgent"  # RFC 2156 section 5.3
        made.set_content(body)
        return made.as_bytes()


@dataclass(frozen=True, kw_only=True)
class Notifications:
    """What telling needs: the server, and who is told of what."""

    server: MailServer
    rules: NoticeRules


def notifications(profile: Profile, environment: Mapping[str, str] = os.environ) -> Notifications | None:
    """As the profile says; None where e-mail is switched off: notices then wait in the outbox.

    `ConfigurationError` profile-secret-missing, mail-login-form.
    """
    told = {name.removeprefix("notifications."): value for name, value in profile.values.items()}
    if told.get("email.enabled") is not True:
        return None
    bundle, user = told.get("email.ca_bundle"), told.get("email.user", "")
    password = secret(told["email.password"], environment) if user else ""
    if not (user + password).isascii() or not (user + password).isprintable():
        raise ConfigurationError(["mail-login-form"], "the mail server's user and password are printable ASCII")
    server = MailServer(
        host=told["email.smtp_server"],
        port=told.get("email.smtp_port", 587),
        from_address=told["email.from_address"],
        ca_bundle=Path(bundle) if bundle else None,
        user=user,
        password=password,
    )
    groups = [*GROUPS, *([OPERATORS] if f"recipients.{OPERATORS}" in told else [])]
    persons = {group: tuple(told[f"recipients.{group}"]) for group in groups}
    return Notifications(
        server=server, rules=NoticeRules(persons=persons, escalate_after=told.get("escalate_after_seconds", ESCALATE_AFTER))
    )


class _Line(smtplib.SMTP):
    """One connection, shut down when its time is over, whatever it is doing. step: how far it came."""

    def __init__(self, server: MailServer) -> None:
        """Opens nothing yet."""
        super().__init__(local_hostname="localhost", timeout=server.idle_seconds)
        self.step, self.late, self._server = "connection", False, server
        self._host = server.host  # the name that `starttls` holds the certificate to
        self._held: socket.socket | None = None
        self._timer = threading.Timer(server.whole_seconds, self._shut)
        self._timer.daemon = True

    def begin(self) -> None:
        """Connects, STARTTLS, login. Raises `OSError`, of which smtplib's exceptions are."""
        context = self._server.context()
        self._timer.start()
        status, _ = self.connect(self._server.host, self._server.port)
        if status != 220:
            raise smtplib.SMTPConnectError(status, b"")
        self.step = "STARTTLS"
        self.starttls(context=context)
        if self._server.user:
            self.step = "login"
            self.login(self._server.user, self._server.password)

    def end(self) -> None:
        """Says goodbye; how the server takes it is nothing to what it took before."""
        with contextlib.suppress(OSError):
            if self.sock is not None:
                self.sock.settimeout(QUIT_SECONDS)
            self.quit()

    def close(self) -> None:
        self._timer.cancel()
        held, self._held = self._held, None
        if held is not None:
            held.close()
        super().close()

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self.file = _Bounded(self.sock.makefile("rb"))
        if self.file is not None:
            self.file.left = MAX_REPLY
        return super().getreply()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        made = socket.create_connection((host, port), timeout)
        address = made.getsockname()[0]
        self.local_hostname = f"[IPv6:{address}]" if ":" in address else f"[{address}]"  # RFC 5321 section 4.1.3; no look-up
        self._held = made.dup()  # TLS takes the socket over; this one still reaches the connection
        return made

    def _shut(self) -> None:
        self.late = True
        held = self._held
        if held is not None:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)


class _Bounded:
    """The server's side of the connection, `left` bytes of it."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream, self.left = stream, MAX_REPLY

    def readline(self, limit: int) -> bytes:
        line = self._stream.readline(limit)
        self.left -= len(line)
        if self.left < 0:
            raise OSError("a reply without end")
        return line

    def close(self) -> None:
        self._stream.close()


def _code(error: OSError, line: _Line) -> str:
    """The failure's code, by how far the exchange came and what was answered."""
    status, late = _status(error), line.late or isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError)
    if line.step == "mail" and not isinstance(error, smtplib.SMTPSenderRefused):
        return _code_of_mail(error, status)
    unsecured = isinstance(error, smtplib.SMTPNotSupportedError) or (line.step == "STARTTLS" and 400 <= status < 600)
    rules = (
        (late, "mail-timeout"),
        (isinstance(error, ssl.SSLError), tls_code(error).replace("tls-", "mail-", 1)),
        (status == 421, "mail-unavailable"),  # RFC 5321 section 4.2.3: the service closes
        (isinstance(error, smtplib.SMTPServerDisconnected), "mail-broken-off"),
        (line.step == "login", "mail-login"),
        (unsecured, "mail-no-starttls"),
        (isinstance(error, smtplib.SMTPSenderRefused), "mail-sender-refused"),
        (isinstance(error, smtplib.SMTPException), "mail-protocol"),
        (line.step == "connection", "mail-unreachable"),
    )
    return next((code for holds, code in rules if holds), "mail-broken-off")


def _code_of_mail(error: OSError, status: int) -> str:
    refused = isinstance(error, smtplib.SMTPRecipientsRefused | smtplib.SMTPDataError)
    if not refused or not 400 <= status < 600:
        return "mail-unfinished"
    what = "recipient" if isinstance(error, smtplib.SMTPRecipientsRefused) else "content"
    return f"mail-{what}-{'later' if status < 500 else 'refused'}"


def _status(error: Any) -> int:
    """The reply code (RFC 5321 section 4.2), 0 where there was none."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return int(next(iter(error.recipients.values()))[0])
    return int(error.smtp_code) if isinstance(error, smtplib.SMTPResponseException) else 0
