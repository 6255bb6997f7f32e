"""The receiver's TLS while it runs: its certificates are replaced under it, and who is silent keeps nobody out."""

import shutil
import socket
from pathlib import Path

import pytest

from blocks.archive import Archive
from blocks.endpoint import Endpoint, TlsSettings
from infra.receiver.certificates import Certificates
from rapha.errors import ConfigurationError, PeerError
from tests.fixtures.certificates import Authority, authority
from tests.fixtures.receiving import Receiving


def placed(folder: Path, ours: Authority) -> tuple[str, ...]:
    """The receiver's three files, of this authority, each replaced whole; the options that name them."""
    folder.mkdir(exist_ok=True)
    cert, key = ours.issue("127.0.0.1")
    for source, name in ((cert, "cert"), (key, "key"), (ours.bundle, "ca")):
        shutil.copy(source, folder / f"{name}.new")
        (folder / f"{name}.new").replace(folder / f"{name}.pem")
    return tuple(text for name in ("cert", "key", "ca") for text in (f"--tls-{name}", str(folder / f"{name}.pem")))


def sender(port: int, ours: Authority) -> Archive:
    """A peer of this authority: it trusts it and shows a certificate of it."""
    cert, key = ours.issue("sender.test")
    tls = TlsSettings(ca_bundle=ours.bundle, cert_file=cert, key_file=key)
    there = {"name": "r", "host": "127.0.0.1", "port": port, "ae_title": "RAPHA", "calling_ae_title": "ORTHANC"}
    return Archive(Endpoint(**there, tls=tls, connect_seconds=5.0))  # type: ignore[arg-type]


def test_certificates_that_are_replaced_are_used_by_the_next_connection(tmp_path: Path) -> None:
    old, new = authority(tmp_path / "old", "Old"), authority(tmp_path / "new", "New")
    options = placed(tmp_path / "files", old)
    with Receiving(tmp_path / "r", *options) as process:
        assert process.process is not None
        of_old, of_new = sender(process.port, old), sender(process.port, new)
        of_old.echo()
        with pytest.raises(PeerError):
            of_new.echo()
        # Half of a rotation, and files that are no certificates at all: the last good ones stay.
        for spoiled, content in (("cert.pem", b"-----BEGIN CERT"), ("key.pem", b""), ("ca.pem", b"no PEM")):
            kept = (tmp_path / "files" / spoiled).read_bytes()
            (tmp_path / "files" / spoiled).write_bytes(content)
            of_old.echo()
            (tmp_path / "files" / spoiled).write_bytes(kept)
        (tmp_path / "files" / "cert.pem").write_bytes(new.issue("127.0.0.1")[0].read_bytes())  # its key is another
        of_old.echo()
        (tmp_path / "files" / "key.pem").unlink()
        of_old.echo()
        placed(tmp_path / "files", new)
        of_new.echo()
        with pytest.raises(PeerError):
            of_old.echo()
        assert process.process.poll() is None


def test_files_that_cannot_be_used_are_said_once_and_the_last_good_ones_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = authority(tmp_path / "ca")
    cert, key = ours.issue("127.0.0.1")
    held = Certificates(TlsSettings(ca_bundle=ours.bundle, cert_file=cert, key_file=key))
    first, good = held.context(), key.read_bytes()
    key.write_bytes(good[:100])
    assert held.context() is first and held.context() is first
    assert [one.getMessage() for one in caplog.records] == ["tls-files-unusable: the last good ones stay in use"]
    key.write_bytes(good)
    assert held.context() is not first
    with pytest.raises(ConfigurationError):  # at its start there is no last good one
        Certificates(TlsSettings(ca_bundle=tmp_path / "none.pem", cert_file=cert, key_file=key))


def test_who_connects_and_says_nothing_keeps_nobody_out(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ca")
    with Receiving(tmp_path / "r", *placed(tmp_path / "files", ours)) as process:
        silent = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(5)]
        sender(process.port, ours).echo()
        for one in silent:
            one.close()
