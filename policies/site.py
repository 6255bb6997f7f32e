"""A site's numbers: sections of one JSON document become the frozen limits that the gates judge by."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rapha.canonical import canonical
from rapha.errors import ConfigurationError

L = TypeVar("L")


def read_section(kind: type[L], section: Mapping[str, Any], name: str) -> L:
    """`section` as a `kind` (a dataclass), strictly; `ConfigurationError` site-policy-<name> for an unknown key or wrong type."""
    code, known = f"site-policy-{name}", {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(section) - known)
    if unknown:
        raise ConfigurationError([code], f"the site policy's section {name!r} has unknown keys: {', '.join(unknown)}")
    try:
        return TypeAdapter(kind).validate_json(canonical(section), strict=True)
    except (ValidationError, ValueError) as error:
        where = error.errors(include_input=False)[0]["loc"] if isinstance(error, ValidationError) else ()
        said = ".".join(str(part) for part in where) or "top level"
        raise ConfigurationError([code], f"the site policy's section {name!r} is wrong at {said}") from None
