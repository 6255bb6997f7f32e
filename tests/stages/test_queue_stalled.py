"""Health says where nobody works on what is due."""

import base64
import secrets
import time
from pathlib import Path

import pytest

from blocks.reading import FoundStudy, ReadingRegister
from flows import reading_health
from rapha.errors import Refusal


def test_a_queue_that_nobody_works_on_is_seen_and_one_that_waits_for_a_reason_is_well(tmp_path: Path) -> None:
    key, now = secrets.token_bytes(32), int(time.time())
    register = ReadingRegister.at(tmp_path / "reading.sqlite", key)
    settings = {
        "RAPHA_REGISTER_URL": f"sqlite:///{tmp_path}/reading.sqlite",
        "RAPHA_REGISTER_KEY_BASE64": base64.b64encode(key).decode(),
    }
    reading_health._queue(settings)  # nothing is owed
    late = now - reading_health.STALLED_SECONDS - 60
    row = register.found("a", FoundStudy(study_uid="1.1"), late).row
    with pytest.raises(Refusal) as stalled:
        reading_health._queue(settings)
    assert stalled.value.codes == ("queue-stalled",)
    lease = register.claim("w", now, 600, row=row)
    assert lease is not None
    register.found("a", FoundStudy(study_uid="1.2"), late)
    reading_health._queue(settings)  # somebody works
    register.set_aside(lease, ["dimse-unreachable"], now)
    reading_health._queue(settings)  # the endpoint is paused
    assert register.unclaimed_seconds(now + 86_400) > 0
    register.close()
