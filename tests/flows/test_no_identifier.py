"""No identifier, no pixel and no secret anywhere but where it belongs, after a run that ends well and one that is refused.

Both are looked for in every form (tests/fixtures/needles.py): in the database and logs of the engine, ledger, register, receipt,
sealed result, release, outputs, evidence, chain, orchestrator, what the processes said, what is left in /tmp and /dev/shm.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from infra.demo.papers import Wish
from infra.demo.world import World
from tests.fixtures.line import kept_namespaces, ours_in
from tests.fixtures.needles import Needles, files, named_bytes, shapes, written
from tests.fixtures.running import FlowProcess, Mark, marked
from tests.fixtures.world import attempt_folder, ended, entries

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARED = (Path("/tmp"), Path("/dev/shm"))


@dataclass
class Seen:
    """What was found while training ran and is judged by the tests; the searches themselves run while the workload waits."""

    world: World
    done: str = ""
    refused: str = ""
    trained: list[int] = field(default_factory=list)
    still: list[int] = field(default_factory=list)
    sealed: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    environments: dict[str, bytes] = field(default_factory=dict)
    mounts: str = ""
    memory: bytes = b""
    said: bytes = b""
    older: set[Path] = field(default_factory=set)


@pytest.fixture(scope="module")
def texts(hospital: World) -> set[str]:
    """Every identifier of the cohort: those that its maker planted, and those that its files are read to hold."""
    found = set(json.loads((hospital.layout.private / "identifiers.json").read_text()))
    for path in (hospital.layout.root / "dicom").glob("*.dcm"):
        image = dcmread(io.BytesIO(path.read_bytes()))
        found |= {str(image.SOPInstanceUID), str(image.StudyInstanceUID), str(image.SeriesInstanceUID)}
        found |= {str(image.PatientID).strip(), str(image.AccessionNumber), *str(image.PatientName).split("=")}
    assert len(found) > 24 * 8
    return {text for text in found if len(text) >= 8}


@pytest.fixture(scope="module")
def identifiers(texts: set[str]) -> Needles:
    """The identifiers, and what a plain digest makes of them (D05)."""
    return Needles(texts, [hashlib.sha256(text.encode()).digest() for text in texts])


@pytest.fixture(scope="module")
def pixels(hospital: World) -> Needles:
    """Sixteen pixels of the middle of each image, as the archive, another byte order and a trainer would write them."""
    rows = []
    for path in (hospital.layout.root / "dicom").glob("*.dcm"):
        row = dcmread(io.BytesIO(path.read_bytes())).pixel_array[32, 24:40]
        rows += [row.astype(kind).tobytes() for kind in ("<u2", ">u2", "<f4", "<i4")]
    return Needles(raws=rows)


@pytest.fixture(scope="module")
def pseudonyms(hospital: World) -> Needles:
    lines = (hospital.layout.private / "records.jsonl").read_bytes().splitlines()
    names = {json.loads(line)[kind] for line in lines for kind in ("record", "patient")}
    return Needles(names, [bytes.fromhex(name) for name in names])


@pytest.fixture(scope="module")
def secrets_of(hospital: World) -> dict[str, bytes]:
    """The node's secrets by name, as bytes; the pseudonym key is the reader's."""
    kept = {path.name: path.read_bytes().strip() for path in hospital.layout.private.glob("**/*.key")}
    kept |= {path.name: base64.b64decode(path.read_text()) for path in hospital.layout.private.glob("*.secret")}
    assert {"pseudonym.secret", "orchestrator.secret", "settlement.key", "ledger.key", "receipt.key"} <= set(kept)
    return kept


def written_secret(secret: bytes) -> set[bytes]:
    """A secret as bytes, as text, and as the body of a PEM file."""
    body = b"".join(line for line in secret.splitlines() if not line.startswith(b"-----"))
    return {part for part in (secret, body, base64.b64encode(secret)) if len(part) >= 8}


def carried(secret: bytes) -> set[bytes]:
    """Each of these in every form."""
    return {form for part in written_secret(secret) for forms in shapes(part).values() for form in forms}


@pytest.fixture(scope="module")
def seen(hospital: World) -> Iterator[Seen]:
    """One run that is searched while it trains and ends well, and one that is refused in training."""
    out = Seen(hospital, older={path for place in SHARED for path in place.iterdir()})
    flow = FlowProcess(hospital, level="DEBUG")
    out.done = flow.run(Wish(epochs=1, source=FIXTURES / "slow"))
    marked(hospital, out.done, Mark("train-started"), flow.process)
    _wait_read(out)
    _look(out, flow)
    assert ended(hospital, out.done).state == "done"
    flow.process.wait(30)
    out.said += flow.output()
    other = FlowProcess(hospital, level="DEBUG")
    out.refused = other.run(Wish(epochs=1, source=FIXTURES / "loud"))
    assert ended(hospital, out.refused).state == "refused"
    other.process.wait(30)
    out.said += other.output()
    out.said += b"".join(_said(member.process) for member in hospital.group.members if member.process is not None)
    yield out


def _sandbox(out: Seen) -> list[int]:
    return [pid for inode in kept_namespaces(out.world) for pid in ours_in(inode)]


def _wait_read(out: Seen, seconds: float = 40.0) -> None:
    """Until the workload sleeps on what it has read: it uses no processor time for a second."""
    until, before, same = time.monotonic() + seconds, -1, 0
    while time.monotonic() < until:
        used = sum(_ticks(pid) for pid in _sandbox(out))
        same = same + 1 if used == before and used > 20 else 0
        if same == 3:
            return
        before = used
        time.sleep(0.3)
    raise AssertionError("the workload never came to rest")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _look(out: Seen, flow: FlowProcess) -> None:
    """Takes a copy of everything, the workload stopped meanwhile; searching it takes longer than a workload should."""
    out.trained = _sandbox(out)
    for pid in out.trained:
        os.kill(pid, signal.SIGSTOP)
    try:
        _copy(out, flow)
    finally:
        for pid in out.trained:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _copy(out: Seen, flow: FlowProcess) -> None:
    world = out.world
    staging = sorted(path for path in (world.layout.root / "staging").rglob("*") if path.is_file())
    out.sealed = {str(path): path.read_bytes() for path in staging}
    out.files = {str(path): named_bytes(path) for place in _writable(out) for path in files(place)}
    for pid in out.trained:
        out.mounts += Path(f"/proc/{pid}/mountinfo").read_text()
        out.memory += _memory(pid)
    for pid in _all_of(world, flow.process.pid) | set(out.trained):
        try:
            command, environment = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile
        name = f"{pid} {' '.join(command.decode(errors='replace').split(chr(0)))}"
        out.environments[name] = environment + command
    out.still = _sandbox(out)


def _memory(pid: int) -> bytes:
    """What a process may write to and is no file: heap, stack, anonymous pages; empty ones left out."""
    out = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, _, _, inode, *_ = line.split()
            first, last = (int(end, 16) for end in span.split("-"))
            if rights.startswith("rw") and inode == "0" and last - first < 1 << 28:
                memory.seek(first)
                with contextlib.suppress(OSError):
                    out.append(memory.read(last - first) or b"")
    pages = np.frombuffer(b"".join(out), dtype=np.uint8).reshape(-1, 4096)
    return pages[pages.any(axis=1)].tobytes()


def _writable(out: Seen) -> list[Path]:
    """Every folder that something of this run could have written to: the host's, the launcher's and the sandbox's."""
    launcher = next(member.process for member in out.world.group.members if member.name == "launcher")
    assert launcher is not None
    inside = [
        path for name in ("media", "mnt", "srv", "opt") for path in Path(f"/proc/{launcher.pid}/root/{name}").glob("rapha-*")
    ]
    assert inside
    root = Path(f"/proc/{out.trained[-1]}/root")
    own = [path for path in out.world.layout.root.iterdir() if path.is_dir() and path.name not in ("dicom", "private")]
    return [
        *inside,
        *(root / name for name in ("tmp", "out", "dev/shm", "workload", "rapha", "etc")),
        *own,
        *(path for path in _new(out) if _is_small(path)),
    ]


def _new(out: Seen) -> list[Path]:
    """What appeared in the shared places since. Folders of test runs, other worlds and checkouts are not ours; ours is named."""
    others = (".git", "pyproject.toml", "ports.json", "dicom")
    now = {path for place in SHARED for path in place.iterdir()}
    return [
        path
        for path in now - out.older
        if path.is_dir() and not path.name.startswith(("pytest-", "swtpm")) and not any((path / name).exists() for name in others)
    ]


def _is_small(folder: Path) -> bool:
    """Nothing that a run of ours leaves is larger; what is belongs to another program of this machine."""
    sizes = [path.lstat().st_size for _, path in zip(range(500), files(folder), strict=False)]
    return len(sizes) < 500 and sum(sizes) < 16 << 20


def _all_of(world: World, *more: int) -> set[int]:
    """The world's processes and everything that they started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    waiting = [*(member.process.pid for member in world.group.members if member.process), *more]
    found: set[int] = set()
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return {pid for pid in found if Path(f"/proc/{pid}").exists()}


def _said(process: subprocess.Popen[bytes]) -> bytes:
    """What waits in the pipe of a process's standard output."""
    pipe, out = process.stdout, b""
    while pipe is not None and select.select([pipe], [], [], 0)[0] and (block := os.read(pipe.fileno(), 1 << 16)):
        out += block
    return out


def places(seen: Seen) -> list[Path]:
    """The world's whole folder but the archive's, and what is new in the shared places."""
    out = [path for path in seen.world.layout.root.iterdir() if path.name != "dicom"]
    return [*out, *_new(seen)]


def everywhere(seen: Seen, needles: Needles, *without: Path) -> dict[str, set[bytes]]:
    found: dict[str, set[bytes]] = {"said": said} if (said := needles.in_(seen.said)) else {}
    for place in places(seen):
        if place.is_file():
            found |= {str(place): hits} if (hits := needles.in_(place.read_bytes())) else {}
        else:
            found |= needles.below(place, without=without)
    return found


def test_D08_no_identifier_is_anywhere_after_two_runs(seen: Seen, identifiers: Needles) -> None:
    planted = seen.world.layout.private / "identifiers.json"
    assert identifiers.in_(planted.read_bytes())
    assert everywhere(seen, identifiers, planted) == {}


def test_C18_no_pixel_is_anywhere_after_two_runs(seen: Seen, pixels: Needles) -> None:
    assert everywhere(seen, pixels) == {}


def test_J05_no_pseudonym_leaves_the_records_file(seen: Seen, pseudonyms: Needles) -> None:
    assert everywhere(seen, pseudonyms, seen.world.layout.private / "records.jsonl") == {}


def test_H06_every_place_was_there_to_be_searched(seen: Seen) -> None:
    """A search of nothing finds nothing."""
    root = seen.world.layout.root
    done, refused = attempt_folder(seen.world, seen.done), attempt_folder(seen.world, seen.refused)
    wanted = [
        root / "engine" / "prefect.db",
        root / "register.sqlite",
        root / "ledger" / "entries.jsonl",
        root / "chain" / "journal.jsonl",
    ]
    wanted += [
        done / "receipt.json",
        done / "sealed.bin",
        done / "release",
        done / "outputs",
        done / "evidence",
        refused / "evidence",
    ]
    wanted += [root / "orchestrator" / "jobs" / job.removeprefix("sha256:") for job in (seen.done, seen.refused)]
    wanted += [root / "logs" / f"{name}.log" for name in ("reader", "keeper", "launcher", "engine", "worker", "flow-process")]
    assert [path for path in wanted if not path.exists()] == []
    assert seen.done.removeprefix("sha256:").encode() in (root / "ledger" / "entries.jsonl").read_bytes()
    refusals = [entry.body["gate"] for entry in entries(seen.world, seen.refused) if entry.body.get("verdict") == "refused"]
    assert refusals == ["train"]


@pytest.mark.timeout(400)  # it searches every file of every mount that may be written to
def test_C18_nothing_clear_is_on_a_filesystem_while_training_runs(seen: Seen, identifiers: Needles, pixels: Needles) -> None:
    assert seen.trained
    assert set(seen.trained) == set(seen.still)
    assert len(seen.files) > 20
    clear = {path: hits for path, data in seen.files.items() if (hits := identifiers.in_(data) | pixels.in_(data))}
    assert clear == {}


def test_C18_staging_is_ciphertext(seen: Seen, identifiers: Needles, pixels: Needles) -> None:
    assert len(seen.sealed) == 24 * 4
    whole = b"".join(seen.sealed.values())
    assert identifiers.in_(whole) | pixels.in_(whole) == set()
    counts = [whole.count(bytes([value])) for value in range(256)]
    assert max(counts) < 1.25 * len(whole) / 256
    assert b"DICM" not in whole


def test_C19_the_pseudonym_key_is_in_no_process_but_the_reader(seen: Seen, secrets_of: dict[str, bytes]) -> None:
    forms = carried(secrets_of["pseudonym.secret"])
    holding = [name for name, held in seen.environments.items() if any(form in held for form in forms)]
    assert len(seen.environments) > 10
    assert ["infra.reader" in name for name in holding] == [True]


def test_C19_no_secret_and_no_identifier_is_in_the_sandbox(
    seen: Seen, texts: set[str], pixels: Needles, secrets_of: dict[str, bytes]
) -> None:
    assert any(pixel in seen.memory for pixel in sorted(pixels.all))  # what it was handed is there, and is found
    forms = {form for secret in secrets_of.values() for form in carried(secret)}
    parts = {part for secret in secrets_of.values() for part in written_secret(secret)}
    assert Needles(texts, parts).in_(seen.memory) == set()
    inside = {name: held for name, held in seen.environments.items() if int(name.split()[0]) in seen.trained}
    assert inside
    assert [name for name, held in inside.items() if any(form in held for form in forms)] == []
    assert str(seen.world.layout.root) not in seen.mounts


@pytest.mark.parametrize("shape", sorted(shapes(b"")))
def test_a_planted_identifier_is_found_in_every_form(
    shape: str, seen: Seen, texts: set[str], identifiers: Needles, tmp_path: Path
) -> None:
    """In a copy of the engine's database, at an odd place, for every way in which the text may be written."""
    text = max(texts, key=lambda one: (not one.isascii(), len(one)))
    database = (seen.world.layout.root / "engine" / "prefect.db").read_bytes()[:200_003]
    forms = {form for raw in written(text) for form in shapes(raw)[shape]}
    (tmp_path / "copy.db").write_bytes(database + b"|".join(forms) + database)
    assert identifiers.below(tmp_path)[str(tmp_path / "copy.db")] >= forms


def test_a_planted_name_of_a_file_is_found(texts: set[str], identifiers: Needles, tmp_path: Path) -> None:
    (tmp_path / min(text for text in texts if text.startswith("2.25."))).touch()
    assert identifiers.below(tmp_path)
