"""What an OCI image may ask for: which manifest of an index is ours, and what its configuration may hold.

OCI image specification 1.1: image-index, manifest and config documents. Pure: the documents come in parsed, codes go out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rapha.canonical import is_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLATFORM = ("linux", "amd64")
ROOT = "workload"  # the only folder of an image that is unpacked: its files are what /workload holds

ENVIRONMENT = frozenset({"LANG", "LC_ALL", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "TZ"})
_VALUE = re.compile(r"[A-Za-z0-9/:._+-]*", re.ASCII)
_TOP = frozenset({"architecture", "author", "config", "created", "history", "os", "rootfs", "variant"})
_CONFIG = frozenset({"Cmd", "Entrypoint", "Env", "ExposedPorts", "Labels", "StopSignal", "User", "Volumes", "WorkingDir"})
_ROOT_USERS = frozenset({"root", "0", "root:root", "0:0", "root:0", "0:root"})


def descriptor_codes(descriptor: object) -> tuple[str, ...]:
    """A descriptor names bytes by full digest and size, and by nothing else (no `urls`, no inline `data`)."""
    if not isinstance(descriptor, Mapping):
        return ("image-malformed",)
    if "urls" in descriptor or "data" in descriptor:
        return ("image-fetches-elsewhere",)
    size = descriptor.get("size")
    if not is_digest(descriptor.get("digest")) or type(size) is not int or size < 0:
        return ("image-malformed",)
    return ()


def candidates(manifests: Sequence[object]) -> list[Mapping[str, Any]]:
    """The entries of an index that could be ours: linux/amd64, or an image manifest with no platform named."""
    found = []
    for entry in manifests:
        if not isinstance(entry, Mapping):
            continue
        platform = entry.get("platform")
        if (entry.get("mediaType") == INDEX and platform is None) or (
            entry.get("mediaType") == MANIFEST and (platform is None or _is_ours(platform))
        ):
            found.append(entry)
    return found


def _is_ours(platform: object) -> bool:
    return (
        isinstance(platform, Mapping)
        and (platform.get("os"), platform.get("architecture")) == PLATFORM
        and set(platform) <= {"os", "architecture"}
    )


def entry_points(config: Mapping[str, Any]) -> list[str]:
    """The entry point that the image starts, relative to /workload; empty when it is not of the one allowed form."""
    inner = config.get("config") or {}
    words = [*(inner.get("Entrypoint") or []), *(inner.get("Cmd") or [])] if isinstance(inner, Mapping) else []
    if not words or not all(isinstance(word, str) for word in words):
        return []
    if words[0] in {"python", "python3"}:
        words = words[1:]
    if len(words) != 1:
        return []
    if words[0].startswith(f"/{ROOT}/"):
        return [words[0].removeprefix(f"/{ROOT}/")]
    return [words[0]] if inner.get("WorkingDir") == f"/{ROOT}" and not words[0].startswith("/") else []


def config_codes(config: object, entry_point: str | None) -> tuple[str, ...]:
    """The `image-…` codes that an image's configuration earns. `entry_point`: the declared one, None for a scan alone."""
    if not isinstance(config, Mapping) or not isinstance(config.get("config", {}), Mapping):
        return ("image-malformed",)
    return tuple(sorted(set(_config_codes(config, config.get("config", {}), entry_point))))


def _config_codes(config: Mapping[str, Any], inner: Mapping[str, Any], entry_point: str | None) -> Iterator[str]:
    if (config.get("os"), config.get("architecture")) != PLATFORM or "variant" in config:
        yield "image-other-platform"
    if set(config) - _TOP or set(inner) - _CONFIG:
        yield "image-unknown-setting"
    if inner.get("Volumes"):
        yield "image-volume"
    if inner.get("ExposedPorts"):
        yield "image-exposed-port"
    if str(inner.get("User") or "nobody") in _ROOT_USERS:
        yield "image-root-user"
    if not _environment_ok(inner.get("Env") or []):
        yield "image-environment"
    started = entry_points(config)
    if not started or (entry_point is not None and started != [entry_point]):
        yield "image-entry-point"


def _environment_ok(variables: object) -> bool:
    if not isinstance(variables, list) or not all(isinstance(v, str) and "=" in v for v in variables):
        return False
    pairs = [variable.split("=", 1) for variable in variables]
    return all(name in ENVIRONMENT and _VALUE.fullmatch(value) is not None for name, value in pairs)


def layer_codes(layers: Iterable[object], diff_ids: object) -> tuple[str, ...]:
    """Layers are tar or gzipped tar, one for each diff id."""
    found = list(layers)
    codes = {code for layer in found for code in descriptor_codes(layer)}
    if not codes and any(layer["mediaType"] not in {LAYER_TAR, LAYER_GZIP} for layer in found if isinstance(layer, Mapping)):
        codes.add("image-layer-format")
    if not isinstance(diff_ids, list) or len(diff_ids) != len(found) or not found or not all(is_digest(d) for d in diff_ids):
        codes.add("image-malformed")
    return tuple(sorted(codes))
