"""May this node read? Settings, keys, profile, models, trail and ledger first, then what is beside it; one finding each."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from blocks.archive import Archive
from blocks.endpoint import Endpoint
from blocks.ledger import Ledger
from blocks.models import load_models
from blocks.profile import Profile, load_profile
from blocks.reading_settings import reading_problems, reading_values
from blocks.validators import IOD, TEMPLATE, installed
from flows.finding import Finding, looked
from flows.reading_health import POLL, QUEUE, reading_components
from flows.reading_looks import looks
from policies.notice import OPERATORS
from rapha.errors import RaphaError, Refusal
from rapha.ledger import verify
from rapha.signing import load_private
from tasks.reading.prove import proves
from tasks.shared.probe import read_record
from tasks.shared.returning import NOTHING

# The parts that `rapha serve` starts: until it runs, that they are not there says nothing.
PROCESSES = {
    "study reader": "RAPHA_STUDY_SOCKET",
    "model launcher": "RAPHA_MODEL_LAUNCHER_SOCKET",
    "receiver": "RAPHA_RECEIVER_SOCKET",
}

LOOKED_AT = ("engine", "reading ledger")  # more closely, or with regard to whether it was started


def examine_reading(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Settings first; where they are not whole, nothing that needs them is tried."""
    wrong = reading_problems(environment)
    if wrong:
        yield from (Finding("reading setting", code, said) for code, said in sorted(wrong.items()))
        return
    yield Finding("reading settings")
    values = {**environment, **reading_values(environment)}
    try:
        profile = load_profile(Path(values["RAPHA_PROFILE_PATH"]), environment)
    except RaphaError as error:
        yield from (Finding("profile", code, error.message) for code in error.codes)
        return
    yield Finding("profile")
    served = any(Path(values[name]).exists() for name in PROCESSES.values() if values.get(name))
    for name, look in {**_looks(values, profile), **looks(values, served=served)}.items():
        yield looked(name, look)
    yield from _limits(values, profile)
    yield from letters_told(profile)
    yield from _parts(values, profile, served=served)


def _limits(values: Mapping[str, str], profile: Profile) -> Iterator[Finding]:
    """A remark where an archive seems to stop earlier than the profile says; a poll goes by the lower of the two."""
    for name, endpoint in profile.endpoints.items():
        try:
            limit = read_record(_capabilities(values), name).limit
        except RaphaError:
            continue  # said of its capabilities
        if limit is not None and limit < endpoint.max_results:
            said = f"the probe had {limit} answers to one query and the profile's max_results is {endpoint.max_results}"
            yield Finding(f"result limit {name}", said=f"{said}: polls take {limit} for the archive's limit")


def _capabilities(values: Mapping[str, str]) -> Path:
    return Path(values["RAPHA_STATE_DIR"]) / "capabilities"


def letters_told(profile: Profile) -> Iterator[Finding]:
    """A remark where nobody is told that a study was given up on."""
    if f"notifications.recipients.{OPERATORS}" not in profile.values:
        yield Finding("dead letters", said=f"nobody is told of them: the profile names no notifications.recipients.{OPERATORS}")


def _looks(values: Mapping[str, str], profile: Profile) -> dict[str, Callable[[], object]]:
    looks: dict[str, Callable[[], object]] = {
        "models": lambda: load_models(Path(values["RAPHA_MODELS_PATH"])),
        "launch script": lambda: _file(Path(values["RAPHA_TRAINER_COMMAND"])),
        "reading ledger": lambda: _ledger(values),
        "bubblewrap": _bubblewrap,
        **{f"report check {tool}": lambda one=tool: installed(one) for tool in (IOD, TEMPLATE)},  # type: ignore[misc]
    }
    for name, endpoint in profile.endpoints.items():
        looks[f"capabilities {name}"] = lambda one=endpoint: _probed(values, one)  # type: ignore[misc]
    return looks


def _parts(values: Mapping[str, str], profile: Profile, *, served: bool) -> Iterator[Finding]:
    """What can be asked. The processes are asked only where one of them was started."""
    for name, code in reading_components(values, profile).items():
        if name in LOOKED_AT:
            continue
        if served or not (name in (*PROCESSES, QUEUE) or name.startswith(f"{POLL} ")):  # nobody polls or reads either
            said = "does not answer; does `rapha serve` run?" if name in PROCESSES else "did not answer as it must"
            yield Finding(name, code, _SAID.get(code, f"{name} {said}") if code else "")
    if not served:
        yield Finding("processes", said="not started yet: rapha serve --only read")


_SAID = {
    "dimse-unreachable": "nothing answers at the archive's address: host, port, a firewall?",
    "dimse-rejected": "the archive does not know our AE title, or we do not name it by its own",
    "dimse-hung-up": "the archive hangs up on us: is our AE title allowed to ask it?",
    "missing-receiver-socket": "an archive is retrieved from by C-MOVE: set RAPHA_RECEIVER_BIND and the receiver's key",
}


def _probed(values: Mapping[str, str], endpoint: Endpoint) -> None:
    """Somebody asked what it can do, and that is enough to prove that it holds a report."""
    record = read_record(_capabilities(values), endpoint.name)
    if not record.probed:
        raise Refusal(["pacs-not-probed"], f"nobody has asked it what it can do: rapha pacs probe --pacs {endpoint.name}")
    receives = bool(values.get("RAPHA_RECEIVER_SOCKET") and values.get("RAPHA_RECEIVER_STORE"))
    if not proves(Archive(endpoint, record), receives):
        said = "it neither commits to a report nor gives it back, so no study of it ends: "
        way = "C-GET or a dicomweb_url" if receives else "C-GET, a dicomweb_url, or RAPHA_RECEIVER_BIND for C-MOVE and commitment"
        raise Refusal([NOTHING], f"{said}it needs {way}")


def _ledger(values: Mapping[str, str]) -> None:
    key = load_private(Path(values["RAPHA_KEYS_DIR"]) / "ledger.key")
    folder = Path(values["RAPHA_STATE_DIR"]) / "ledger"
    Ledger(folder, key)
    report = verify(folder, key.public_key())
    if not report.ok:
        raise Refusal([f"ledger-{report.kind}"], f"the ledger does not verify: {report.detail}")


def _file(path: Path) -> None:
    if not path.is_file():
        raise Refusal(["trainer-command-missing"], f"{path} is not there")


def _bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        raise Refusal(["bubblewrap-missing"], "an administrator must run: apt-get install bubblewrap")
