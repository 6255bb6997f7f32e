"""Model packages on this node: folders of three files, each known by digest, and the site's list of those that may read.

model.json            what the package says of itself (`policies.model.Model`)
analyse.py            what runs in the sandbox
weights.safetensors   what it has learnt
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.model import Model, read_model
from rapha.canonical import digest, digest_of, is_digest, parse
from rapha.errors import ConfigurationError, Refusal

FILES = ("analyse.py", "model.json", "weights.safetensors")
ENTRY_POINT = "analyse.py"
MAX_CODE, MAX_WEIGHTS = 1 << 20, 1 << 30


@dataclass(frozen=True)
class ModelPackage:
    """A package whose bytes are those of its digests. digest: over the three files' names and digests; `source`: analyse.py and
    model.json as the tar that the launcher unpacks."""

    model: Model
    digest: str
    source: bytes
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"


def load_package(folder: Path) -> ModelPackage:
    """Reads a package and checks it against its own declaration. Raises `Refusal` model-unreadable, model-code, model-weights,
    model-malformed, model-schema, json-…."""
    raw = {name: _read(folder / name, MAX_WEIGHTS if name.startswith("weights") else MAX_CODE) for name in FILES}
    model = read_model(raw["model.json"])
    digests = {name: digest(content) for name, content in raw.items()}
    if digests["analyse.py"] != model.code:
        raise Refusal(["model-code"], "analyse.py is not the one that model.json names", gate="model")
    if digests["weights.safetensors"] != model.weights:
        raise Refusal(["model-weights"], "weights.safetensors is not the one that model.json names", gate="model")
    return ModelPackage(model, digest_of(digests), _tar({name: raw[name] for name in FILES[:2]}), folder)


def load_models(path: Path) -> tuple[ModelPackage, ...]:
    """The packages of a site file, each held to the digest that the site wrote down.

        {"models": [{"folder": "models/radiology", "digest": "sha256:…"}, …]}

    A folder is relative to the file. Raises `ConfigurationError` models-missing, models-malformed, models-none, models-other (a
    package is not the one of that digest), models-twice, or the package's own codes.
    """
    packages = []
    for entry in _entries(path):
        try:
            package = load_package((path.parent / entry["folder"]).resolve())
        except Refusal as refusal:
            raise ConfigurationError(refusal.codes, refusal.message) from None
        if package.digest != entry["digest"]:
            raise ConfigurationError(["models-other"], "a model package is not the one that the site's list names")
        packages.append(package)
    if len({package.digest for package in packages}) != len(packages):
        raise ConfigurationError(["models-twice"], "the site's list names a model package twice")
    return tuple(packages)


def site_list(folders: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
    """The site file's content that allows exactly these packages, as they are now: for whoever has looked at them."""
    return {"models": [{"folder": str(folder), "digest": load_package(folder).digest} for folder in folders]}


def _entries(path: Path) -> list[dict[str, str]]:
    try:
        value = parse(path.read_bytes(), what="list of models")
    except OSError:
        raise ConfigurationError(["models-missing"], "the site's list of models cannot be read") from None
    except Refusal as refusal:
        raise ConfigurationError(["models-malformed", *refusal.codes], "the site's list of models is not strict JSON") from None
    listed = value.get("models") if isinstance(value, dict) and set(value) == {"models"} else None
    if not isinstance(listed, list) or not all(_is_entry(one) for one in listed):
        raise ConfigurationError(["models-malformed"], "the site's list of models is not of the one form")
    if not listed:
        raise ConfigurationError(["models-none"], "the site's list of models is empty: nothing could be analysed")
    return listed


def _is_entry(value: object) -> bool:
    plain = isinstance(value, dict) and set(value) == {"folder", "digest"} and all(isinstance(v, str) for v in value.values())
    return plain and is_digest(value["digest"])  # type: ignore[index]


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError:
        raise Refusal(["model-unreadable"], "a file of a model package cannot be read", gate="model") from None
    if len(raw) > limit:
        raise Refusal(["model-unreadable"], "a file of a model package is too large", gate="model")
    return raw


def _tar(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar: the same bytes for the same files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
