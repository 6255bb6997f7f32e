"""The mail block against real servers: what is taken, what is refused and as what, and that nothing is said in clear."""

import contextlib
import email
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.mail import MailServer
from rapha.errors import ConfigurationError, PeerError, Refusal
from tests.fixtures.certificates import authority
from tests.fixtures.mail import SENDER, Answers, answering, post, server, speaking

TO, ID = "first@hospital.example", "<rapha.0a1b@hospital.example>"


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("ca"))


def code(mail, to=TO, subject="Result for row 1", body="Findings: 1\n", name=ID):
    with pytest.raises(PeerError) as failed:
        mail.send(to, subject, body, name)
    assert failed.value.peer == "mail"
    return failed.value.codes[0]


def test_a_mail_arrives_as_it_was_written(ca, tmp_path):
    with post(ca, tmp_path / "box") as there:
        server(ca, there.port).check()
        server(ca, there.port).send(TO, "CRITICAL finding in row 3 (notice 4)", ".\nFindings: 2\n..\nend\n", ID, urgent=True)
        server(ca, there.port).send(TO, "Result for row 3", "x\n", ID)
        urgent, plain = there.mails()
    assert (urgent["X-Envelope-To"], urgent["To"], urgent["From"], urgent["Message-ID"]) == (TO, TO, SENDER, ID)
    assert urgent["Subject"] == "CRITICAL finding in row 3 (notice 4)"
    assert urgent.get_payload() == ".\r\nFindings: 2\r\n..\r\nend\r\n"
    assert (urgent["Importance"], urgent["Priority"], urgent["Auto-Submitted"]) == ("high", "urgent", "auto-generated")
    assert plain["Importance"] is None and plain["Message-ID"] == ID


@pytest.mark.parametrize(
    ("name", "expired", "said"),
    [("127.0.0.9", False, "mail-name-differs"), ("localhost", True, "mail-certificate-expired")],
)
def test_a_server_that_cannot_prove_its_name_gets_nothing(ca, tmp_path, name, expired, said):
    with post(ca, tmp_path / "box", name=name, expired=expired) as there:
        assert code(server(ca, there.port)) == said
        assert there.mails() == []


def test_an_authority_that_is_not_ours_vouches_for_nobody(ca, tmp_path):
    other = authority(tmp_path / "other", "Another Authority")
    with post(ca, tmp_path / "box") as there:
        assert code(server(other, there.port)) == "mail-certificate-untrusted"
        assert code(server(ca, there.port, ca_bundle=None)) == "mail-certificate-untrusted"
        with pytest.raises(ConfigurationError) as wrong:
            server(ca, there.port, ca_bundle=tmp_path / "none.pem").send(TO, "s", "b", ID)
    assert wrong.value.codes == ("mail-ca-bundle",)


def test_without_starttls_nothing_is_said_but_the_greeting(ca):
    with answering(ca, Answers(), starttls=False) as port:
        assert code(server(ca, port, user="rapha", password="s3cret")) == "mail-no-starttls"

    def strip(line):
        line.sendall(b"220 here\r\n")
        assert line.recv(4096).startswith(b"ehlo")
        line.sendall(b"250-here\r\n250 AUTH PLAIN LOGIN\r\n")

    with speaking(strip) as (port, heard):
        assert code(server(ca, port, user="rapha", password="s3cret")) == "mail-no-starttls"
        time.sleep(0.1)
        assert b"".join(heard) == b"", "not a byte of login, address or mail"


def test_what_is_said_in_clear_behind_the_answer_to_starttls_is_not_heard(ca):
    """An injected capability list must not stand for the one under TLS (RFC 3207 section 4.2)."""
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*ca.issue("localhost"))

    def inject(line):
        line.sendall(b"220 here\r\n")
        line.recv(4096)
        line.sendall(b"250-here\r\n250 STARTTLS\r\n")
        line.recv(4096)
        line.sendall(b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n")
        secured = context.wrap_socket(line, server_side=True)
        secured.recv(4096)
        secured.sendall(b"250 here\r\n")
        heard.append(secured.recv(4096))

    heard = []
    with speaking(inject) as (port, _):
        assert code(server(ca, port, user="rapha", password="s3cret")) == "mail-login"
        time.sleep(0.1)
    assert not any(said.startswith(b"AUTH") for said in heard)


REFUSALS = {
    "mail-sender-refused": Answers(mail="550 not you"),
    "mail-recipient-refused": Answers(rcpt={TO: "550 5.1.1 no such mailbox"}),
    "mail-recipient-later": Answers(rcpt={TO: "450 4.2.1 greylisted"}),
    "mail-content-refused": Answers(data="554 5.6.0 no"),
    "mail-content-later": Answers(data="452 full"),
}


@pytest.mark.parametrize("said", sorted(REFUSALS))
def test_each_refusal_has_its_code_and_the_servers_words_go_nowhere(ca, said, caplog):
    with answering(ca, REFUSALS[said]) as port:
        mail = server(ca, port)
        with pytest.raises(PeerError) as failed:
            mail.send(TO, "s", "b", ID)
        assert failed.value.codes == (said,)
        assert not any(word in str(failed.value) + caplog.text for word in ("mailbox", "greylisted", "not you", TO))


def test_one_refused_recipient_is_only_that_one(ca):
    answers = Answers(rcpt={TO: "550 no"})
    with answering(ca, answers) as port:
        assert code(server(ca, port)) == "mail-recipient-refused"
        server(ca, port).send("second@hospital.example", "s", "b", ID)
    assert [to for to, _ in answers.heard] == ["second@hospital.example"]


def test_a_login_is_shown_under_tls_alone_and_a_wrong_one_is_said(ca):
    answers = Answers()
    with answering(ca, answers, login=("rapha", "s3cret")) as port:
        assert code(server(ca, port)) == "mail-sender-refused"
        assert code(server(ca, port, user="rapha", password="wrong")) == "mail-login"
        right = server(ca, port, user="rapha", password="s3cret")
        right.send(TO, "s", "b", ID)
        assert "s3cret" not in repr(right)
    assert len(answers.heard) == 1


def drip(line):
    with contextlib.suppress(OSError):
        while True:
            line.sendall(b"2")
            time.sleep(0.05)


def flood(line):
    with contextlib.suppress(OSError):
        while True:
            line.sendall(b"220-more\r\n" * 1000)


def greet(line):
    line.sendall(b"220 here\r\n")


def start(line):
    greet(line)
    line.recv(4096)
    line.sendall(b"250-here\r\n250 STARTTLS\r\n")
    line.recv(4096)
    line.sendall(b"220 go\r\n")


def start_and_drip(line):
    """A TLS record that never ends."""
    start(line)
    line.sendall(b"\x16\x03\x03\x40\x00")
    drip(line)


def hang_up(line):
    line.shutdown(socket.SHUT_RDWR)


def busy(line):
    line.sendall(b"421 later\r\n")


def nonsense(line):
    line.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


LINES = [
    (lambda line: None, {"idle_seconds": 0.4}, "mail-timeout"),
    (greet, {"idle_seconds": 0.4}, "mail-timeout"),
    (start, {"idle_seconds": 0.4}, "mail-timeout"),
    (drip, {"whole_seconds": 0.6}, "mail-timeout"),
    (start_and_drip, {"whole_seconds": 0.6}, "mail-timeout"),
    (flood, {"whole_seconds": 10.0}, "mail-broken-off"),
    (hang_up, {}, "mail-broken-off"),
    (busy, {}, "mail-unavailable"),
    (nonsense, {}, "mail-protocol"),
]


@pytest.mark.parametrize(("talk", "patience", "said"), LINES)
def test_a_line_that_stalls_drips_floods_or_breaks_ends_in_time_with_a_code(ca, talk, patience, said):
    with speaking(talk) as (port, _):
        began = time.monotonic()
        assert code(server(ca, port, **patience)) == said
        assert time.monotonic() - began < 3


def test_a_stall_after_the_last_dot_may_have_been_taken_and_is_told_apart(ca):
    with answering(ca, Answers(meanwhile=lambda: time.sleep(1.2))) as port:
        assert code(server(ca, port, idle_seconds=0.4)) == "mail-unfinished"


def test_a_server_that_hangs_up_after_it_took_the_mail_took_the_mail(ca):
    answers = Answers(hangs_up=True)
    with answering(ca, answers) as port:
        server(ca, port).send(TO, "s", "b", ID)
    assert len(answers.heard) == 1


def test_nobody_listens(ca):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert code(server(ca, port)) == "mail-unreachable"
    assert code(server(ca, 25, host="no-such-host.invalid")) == "mail-unreachable"


HEADERS = st.text(st.sampled_from("ab@.\r\n\0:<>, \x0b\x1c\x85\u2028\té"), max_size=12)


@settings(max_examples=300, deadline=None)
@given(subject=HEADERS, to=HEADERS, name=HEADERS, body=st.text(max_size=40))
def test_no_text_becomes_a_header_of_its_own(subject, to, name, body):
    """What is not refused is, parsed again, exactly what was given; nothing else is in the head."""
    mail = MailServer(host="localhost", from_address=SENDER)
    for given_to, given_name, given_subject in ((to, ID, "s"), (TO, name, "s"), (TO, ID, subject)):
        try:
            raw = mail._message(given_to, given_subject, body, given_name, False)
        except Refusal as refusal:
            assert refusal.codes == ("mail-header",)
            continue
        read = email.message_from_bytes(raw)
        assert (read["To"], read["Message-ID"], read["Subject"]) == (given_to, given_name, given_subject)
        assert set(read.keys()) <= {
            "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted",
            "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
        }  # fmt: skip


@pytest.mark.parametrize("bad", ["s\r\nBcc: x@evil.example", "s\n", "s\r", "", "é", "a" * 201, "s\x00"])
def test_a_subject_that_is_more_than_one_line_is_refused(bad):
    with pytest.raises(Refusal) as wrong:
        MailServer(host="localhost", from_address=SENDER)._message(TO, bad, "b", ID, False)
    assert wrong.value.codes == ("mail-header",)


@pytest.mark.parametrize("bad", [f"{ID}\r\nBcc: x@evil.example", f"{ID}\n", f" {ID}", "<a b@c>", "a@b", ""])
def test_a_message_id_is_one_and_nothing_else(bad):
    with pytest.raises(Refusal) as wrong:
        MailServer(host="localhost", from_address=SENDER)._message(TO, "s", "b", bad, False)
    assert wrong.value.codes == ("mail-header",)


def test_a_long_address_and_message_id_stay_whole(ca, tmp_path):
    to, name = f"{'a' * 60}@{'b' * 60}.{'c' * 60}.example", f"<rapha.{'0' * 40}@{'d' * 60}.{'e' * 60}.example>"
    with post(ca, tmp_path / "box") as there:
        server(ca, there.port).send(to, "s" * 150, "b", name)
        raw = next(there.box.glob("*.eml")).read_bytes()
    assert f"\r\nSubject: {'s' * 150}\r\n".encode() in raw
    assert f"\r\nTo: {to}\r\n".encode() in raw and f"\r\nMessage-ID: {name}\r\n".encode() in raw
