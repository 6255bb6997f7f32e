"""Which halves of the node are configured here: training, reading, or both. Where none is, it is training that is missed."""

import os
from collections.abc import Mapping

_SIGNS = {"training": "RAPHA_ORCHESTRATOR_API_BASE", "reading": "RAPHA_PROFILE_PATH"}


def halves(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """ "training", "reading", in this order. A profile alone, for `rapha pacs`, makes no reading service."""
    found = [name for name, sign in _SIGNS.items() if environment.get(sign, "").strip()]
    if "reading" in found and not environment.get("RAPHA_REGISTER_KEY_BASE64", "").strip():
        found.remove("reading")
    return tuple(found) or ("training",)
