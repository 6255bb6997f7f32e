"""A fault of this node that passes is no property of an image: nothing is left out of a study for it."""

import errno
import io
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom.encaps import generate_frames
from pydicom.filereader import dcmread
from pydicom.pixels.utils import pixel_array

from blocks.instances import SealedWriter
from blocks.part10 import read_meta
from infra import daemon
from infra.hospital.reading_cohort import make_study
from infra.study import codec
from infra.study.decoder import Decoder, Form
from infra.study.desk import Desk
from infra.study.opened import Opened, Opener, SealedFile
from rapha.canonical import digest
from rapha.errors import PeerError, Refusal
from rapha.protocol import ALL_FRAMES, READ, Request
from tests.fixtures.study_running import files_of
from tests.peers.test_study_reader import packaged

PRIVATE = X25519PrivateKey.generate()
RAW = packaged("MR_small_jp2klossless.dcm")


def compressed() -> tuple[Form, bytes]:
    dataset = dcmread(io.BytesIO(RAW))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    return Form.of(dataset, str(dataset.file_meta.TransferSyntaxUID)), frame


class Dying(Decoder):
    """The real decoder, whose first processes are killed before they answer."""

    def __init__(self, deaths: int) -> None:
        super().__init__()
        self.deaths, self.started = deaths, 0

    def _start(self) -> Any:
        line = super()._start()
        self.started += 1
        if self.started <= self.deaths:
            assert self._process is not None
            os.kill(codec_of(self._process.pid), signal.SIGKILL)
        return line


def codec_of(pid: int) -> int:
    """The process in the sandbox, once it runs."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
        pid = found[-1] if found else pid
        if not found and "python" in Path(f"/proc/{pid}/exe").readlink().name:
            return pid
    raise AssertionError("the codec was not started")


def test_a_frame_whose_decoder_is_killed_is_decoded_by_the_next() -> None:
    dying = Dying(1)
    assert np.array_equal(dying.decode(*compressed()), pixel_array(io.BytesIO(RAW)))
    assert dying.started == 2
    dying.close()


def test_a_frame_that_two_decoders_die_of_fails_the_study_for_later_and_the_next_frame_meets_a_new_one() -> None:
    dying = Dying(2)
    with pytest.raises(PeerError) as failed:
        dying.decode(*compressed())
    assert failed.value.codes == ("study-decoder-failed",) and dying.started == 2
    assert dying.decode(*compressed()).shape == (64, 64)
    dying.close()


@pytest.mark.parametrize(
    ("raised", "status"), [(MemoryError, codec.NO_MEMORY), (ValueError, codec.BROKEN), (OSError, codec.BROKEN)]
)
def test_the_codec_calls_no_memory_by_another_name_than_a_broken_frame(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception], status: int
) -> None:
    def fails(_: object) -> None:
        raise raised

    monkeypatch.setattr(codec, "pixel_array", fails)
    assert codec.HEAD.unpack(codec._answer(b"")[0])[0] == status


class Saying(Decoder):
    """Each process answers with a status and no more, the ones after them with nothing."""

    def __init__(self, *statuses: int) -> None:
        super().__init__()
        self.statuses = list(statuses)

    def _start(self) -> Any:
        ours, self.theirs = socket.socketpair()
        if self.statuses:
            self.theirs.sendall(codec.HEAD.pack(self.statuses.pop(0), b"   ", 0, 0, 0, 0, 0))
        ours.settimeout(0.01)
        self._line = ours
        return ours


@pytest.mark.parametrize("statuses", [(codec.NO_MEMORY, codec.NO_MEMORY), (codec.NO_MEMORY,), ()])
def test_two_decoders_without_memory_or_without_an_answer_are_a_failed_peer(statuses: tuple[int, ...]) -> None:
    with pytest.raises(PeerError) as failed:
        Saying(*statuses).decode(*compressed())
    assert failed.value.codes == ("study-decoder-failed",)


def test_a_decoder_without_memory_is_asked_once_more() -> None:
    with pytest.raises(Refusal) as broken:
        Saying(codec.NO_MEMORY, codec.BROKEN).decode(*compressed())
    assert broken.value.codes == ("record-malformed",)


# -- descriptors and disks


def sealed(folder: Path, files: list[bytes]) -> list[SealedFile]:
    found = []
    for raw in files:
        writer = SealedWriter(folder, PRIVATE.public_key())
        writer.write(raw)
        meta = read_meta(raw)
        assert meta is not None
        found.append(SealedFile(str(writer.finish().path), digest(raw[meta.length :])))
    return found


class Failing:
    """`Path.open` of sealed files: the call of this number fails, and every later one while `on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.on, self.opened, self.files = True, 0, list[Any]()
        real = Path.open

        def opens(path: Path, *how: Any, **more: Any) -> Any:
            if path.suffix == ".sealed":
                self.opened += 1
                if self.on and self.opened >= number:
                    raise OSError(errno.EMFILE, "Too many open files")
            found = real(path, *how, **more)
            self.files.append(found)
            return found

        monkeypatch.setattr(Path, "open", opens)


def test_a_slide_for_which_no_descriptor_is_left_fails_the_study_and_has_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sealed(tmp_path, files_of(make_study("sm", 3, 1))[:3])
    study = Opened(Opener(PRIVATE, [tmp_path]))
    study.add(files)
    failing = Failing(monkeypatch, 3)
    with pytest.raises(PeerError) as failed:
        study.pair()
    assert failed.value.codes == ("study-file-unreadable",)
    assert [study.facts(index).fault for index in range(3)] == ["", "", ""]
    assert len(failing.files) == 2 and all(one.closed for one in failing.files)
    failing.on = False
    study.pair()
    assert [study.facts(index).levels for index in range(3)] == [3, 1, 1]
    study.close()


@pytest.mark.parametrize("where", ["its header", "its end"])
def test_a_slide_of_which_a_sealed_file_was_changed_is_refused_and_not_left_out(tmp_path: Path, where: str) -> None:
    files = sealed(tmp_path, files_of(make_study("sm", 3, 1))[:3])
    study = Opened(Opener(PRIVATE, [tmp_path]))
    study.add(files)
    whole = Path(files[0].path).read_bytes()
    at = 200 if where == "its header" else len(whole) - 1
    Path(files[0].path).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(Refusal) as refused:
        study.pair()
    assert refused.value.codes == ("sealed-tampered",)
    study.close()


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.EMFILE, PeerError, "study-file-unreadable"), (errno.ENOENT, Refusal, "study-file-missing")],
)
def test_only_a_file_that_is_not_there_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], code: str
) -> None:
    (file,) = sealed(tmp_path, [RAW])

    def opens(*_: Any, **__: Any) -> None:
        raise OSError(number, "")

    monkeypatch.setattr(Path, "open", opens)
    with pytest.raises(kind) as failed:
        Opened(Opener(PRIVATE, [tmp_path])).add([file])
    assert failed.value.codes == (code,)  # type: ignore[attr-defined]


class Spoilt:
    """A sealed file whose disk fails."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")


def no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


def of_disk(study: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    real = study._opener.open

    def opens(path: str) -> Any:
        stream = real(path)
        stream._file, stream._held = Spoilt(stream._file), -1
        return stream

    monkeypatch.setattr(study._opener, "open", opens)


def of_memory(study: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.reader.decode.pixel_array", no_memory)


@pytest.mark.parametrize(("fault", "code"), [(of_disk, "study-file-unreadable"), (of_memory, "study-no-memory")])
def test_what_this_node_cannot_read_ends_the_run_and_is_told_to_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Opened, pytest.MonkeyPatch], None], code: str
) -> None:
    study = Opened(Opener(PRIVATE, [tmp_path]))
    study.add(sealed(tmp_path, [packaged("CT_small.dcm")]))
    desk = Desk(study, (0,))
    fault(study, monkeypatch)
    with pytest.raises(PeerError):
        desk._answered(Request(READ, 0, ALL_FRAMES))
    for ask in (desk.counts, desk.handed):
        with pytest.raises(PeerError) as failed:
            ask()
        assert failed.value.codes == (code,)
    study.close()


def test_a_daemon_may_hold_as_many_files_as_it_is_allowed() -> None:
    was = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, was[1]))
    try:
        daemon.many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(was[1], daemon.MOST_FILES), was[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, was)


def test_the_descriptors_of_sealed_files_leave_the_low_ones_to_sockets(tmp_path: Path) -> None:
    (file,) = sealed(tmp_path, [RAW])
    opener, was = Opener(PRIVATE, [tmp_path]), resource.getrlimit(resource.RLIMIT_NOFILE)
    found = []
    try:
        for limit in (512, 4096):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, was[1]))
            stream = opener.open(file.path)
            found.append(stream._file.fileno() >= 1024)
            assert b"DICM" in stream.read(200)
            stream.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, was)
    assert found == [False, True]


def test_a_process_without_memory_is_a_failed_peer_and_no_bug() -> None:
    class Session:
        do_read = staticmethod(no_memory)

        def closed(self) -> None:
            pass

    assert daemon._answer(Session(), {"verb": "read"}, []) == {"ok": False, "codes": ["process-no-memory"], "kind": "peer"}
