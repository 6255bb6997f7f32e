"""The sealed file: for one key, one job, whole."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha import sealed
from rapha.errors import ConfigurationError, Refusal
from rapha.sealed import load_recipient, open_result, recipient_key, seal_files, write_recipient

JOB = "sha256:" + "6" * 64
FILES = {"weights.safetensors": bytes(range(256)) * 12_000, "metrics.json": b'{"loss":0.4}\n'}  # three chunks
KEY = X25519PrivateKey.generate()


def made(folder: Path, *, job: str = JOB) -> Path:
    path = folder / "sealed.bin"
    with path.open("wb") as stream:
        seal_files(FILES, KEY.public_key(), stream, job=job, attempt=3)
    return path


def refused(path: Path, key: X25519PrivateKey = KEY, job: str | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        open_result(path, key, path.parent / "out", job=job)
    assert not (path.parent / "out").exists()
    return caught.value.codes[0]


def test_it_opens_for_its_recipient_in_private_files(tmp_path: Path) -> None:
    opened = open_result(made(tmp_path), KEY, tmp_path / "out")
    assert (opened.job, opened.attempt) == (JOB, 3)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    assert all((tmp_path / "out" / name).stat().st_mode & 0o077 == 0 for name in FILES)
    with pytest.raises(ConfigurationError):
        open_result(made(tmp_path), KEY, tmp_path / "out")


def test_another_key_and_another_job_refuse(tmp_path: Path) -> None:
    assert refused(made(tmp_path), X25519PrivateKey.generate()) == "sealed-not-for-this-key"
    assert refused(made(tmp_path), job="sha256:" + "7" * 64) == "sealed-other-job"


def test_a_header_of_another_job_does_not_open(tmp_path: Path) -> None:
    path = made(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"6" * 64, b"7" * 64))
    assert refused(path) == "sealed-tampered"


def test_chunks_cannot_be_dropped_swapped_or_doubled(tmp_path: Path) -> None:
    raw = made(tmp_path).read_bytes()
    size = sealed.CHUNK + 16
    last = (len(raw) - raw.index(b"}") - 1 - 80) % size
    head, body = raw[: len(raw) - last - 2 * size], raw[len(raw) - last - 2 * size :]
    chunks = [body[:size], body[size : 2 * size], body[2 * size :]]
    path = tmp_path / "sealed.bin"
    for order in ((0, 1), (0, 2), (1, 0, 2), (0, 1, 1, 2), (0,), ()):
        path.write_bytes(head + b"".join(chunks[n] for n in order))
        assert refused(path) == "sealed-tampered"
    path.write_bytes(head + b"".join(chunks))
    assert open_result(path, KEY, tmp_path / "whole").job == JOB


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]\n",
        b"{}\n",
        b"nothing",
        b'[{"digest":"x","name":"metrics.json","size":"1"},{"digest":"x","name":"weights.safetensors","size":1}]\n',
        b'[{"digest":"x","name":"../../evil","size":0},{"digest":"x","name":"weights.safetensors","size":0}]\n',
    ],
)
def test_content_that_is_not_the_two_files_is_not_written(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "_content", lambda files: content)
    assert refused(made(tmp_path)) == "sealed-content"


@pytest.mark.parametrize("raw", [b"", b"rapha sealed v1\n", b"rapha sealed v1\n\xff\xff\xff\xff", b"PK\x03\x04" + b"\x00" * 100])
def test_what_is_no_sealed_file_refuses(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "sealed.bin").write_bytes(raw)
    assert refused(tmp_path / "sealed.bin") == "sealed-malformed"


@pytest.mark.parametrize("text", ["", "AAAA", "A" * 43 + "=", base64.b64encode(b"\x01" + b"\x00" * 31).decode(), "not base64"])
def test_a_recipient_that_is_no_key_or_a_weak_one_refuses(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        recipient_key(text)
    assert caught.value.codes == ("recipient-key",)


def test_a_recipients_key_file_is_private(tmp_path: Path) -> None:
    public = write_recipient(tmp_path / "k.pem")
    assert recipient_key(public).public_bytes_raw() == load_recipient(tmp_path / "k.pem").public_key().public_bytes_raw()
    (tmp_path / "k.pem").chmod(0o644)
    with pytest.raises(ConfigurationError):
        load_recipient(tmp_path / "k.pem")


def test_the_same_result_sealed_twice_shares_nothing(tmp_path: Path) -> None:
    first, second = made(tmp_path).read_bytes(), made(tmp_path).read_bytes()
    assert first[-64:] != second[-64:]
