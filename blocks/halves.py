"""Which halves of a node are configured: training, reading, or both.

A half is meant as soon as one setting is there that nothing else needs: what it lacks beside that is then missing, and that is
not taken for a choice. Where neither is meant, it is training that is missed.
"""

import os
from collections.abc import Mapping
from typing import Literal

from blocks.reading_settings import NEEDED, PLACES
from blocks.settings import ALWAYS, NODE

Half = Literal["train", "read"]
NAMES = {"train": "training", "read": "reading"}
# What commands by hand need too (`rapha pacs`, `rapha minimise`, `rapha audit`), and what both halves have.
_SHARED = {
    "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION",
    "RAPHA_DICOMWEB_BASE_URL",
    "RAPHA_PHI_HMAC_KEY_BASE64",
    "RAPHA_DATASET_MANIFEST_PATH",
    "RAPHA_PROFILE_PATH",
    "RAPHA_AUDIT_KEY_BASE64",
}
_OWN = {
    "training": {*ALWAYS, *NODE} - {*NEEDED} - _SHARED,
    "reading": {*NEEDED, *PLACES} - {*ALWAYS, *NODE} - _SHARED,
}


def halves(environment: Mapping[str, str] = os.environ, only: Half | None = None) -> tuple[str, ...]:
    """ "training", "reading", in this order; the one that a person asks for, where one does."""
    if only is not None:
        return (NAMES[only],)
    return tuple(half for half, own in _OWN.items() if any(environment.get(name, "").strip() for name in own)) or ("training",)
