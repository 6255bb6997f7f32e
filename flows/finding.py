"""One line of what a doctor finds."""

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from rapha.errors import RaphaError


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and the code and sentence of what is wrong; a sentence alone is a remark."""

    name: str
    code: str = ""
    said: str = ""

    @property
    def ok(self) -> bool:
        return not self.code


def looked(name: str, look: Callable[[], object]) -> Finding:
    """The finding of one look: what it raises is what is wrong."""
    try:
        look()
    except RaphaError as error:
        return Finding(name, error.codes[0], error.message)
    except (OSError, httpx.HTTPError) as error:
        return Finding(name, f"{name.replace(' ', '-')}-unreachable", type(error).__name__)
    return Finding(name)
