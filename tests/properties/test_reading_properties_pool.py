"""Associations with one archive: never more of them open than the profile allows, and each one exchange's own."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association

from blocks.archive import Archive
from blocks.dimse.services import FIND
from blocks.dimse.slots import slot
from blocks.endpoint import Endpoint

HOWS = st.lists(st.sampled_from(["asks", "asks", "holds and asks", "holds and fails"]), min_size=2, max_size=7)


class Seen:
    """An archive, and what it saw: associations that were open in this process at once, and who used which."""

    def __init__(self) -> None:
        self.most, self.users = 0, dict[Association, set[str]]()
        ae = AE("PACS")
        ae.add_supported_context(FIND)
        self._server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, self._find)])
        self.port = int(self._server.socket.getsockname()[1])

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        ours = [one for one in threading.enumerate() if isinstance(one, Association) and one.is_requestor and one.is_established]
        self.most = max(self.most, len(ours))
        self.users.setdefault(event.assoc, set()).add(str(event.identifier.PatientID))
        time.sleep(0.03)
        yield from ()

    def close(self) -> None:
        threading.Thread(target=self._server.shutdown, daemon=True).start()


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    archive = Seen()
    yield archive
    archive.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 3), hows=HOWS)
def test_no_more_associations_are_open_than_there_are_places_and_none_is_shared(seen: Seen, size: int, hows: list[str]) -> None:
    titles: dict[str, Any] = {"name": "pool", "host": "127.0.0.1", "ae_title": "PACS", "calling_ae_title": "RAPHA"}
    endpoint = Endpoint(**titles, port=seen.port, pool_size=size, whole_seconds=20.0)
    seen.most, seen.users = 0, {}
    with ThreadPoolExecutor(len(hows)) as pool:
        ends = list(pool.map(lambda each: used(endpoint, *each), enumerate(hows)))
    assert ends == ["failed" if how == "holds and fails" else "answered" for how in hows]
    assert seen.most <= size
    assert [users for users in seen.users.values() if len(users) != 1] == []
    all_back(endpoint, size)


def used(endpoint: Endpoint, number: int, how: str) -> str:
    """One thread's use: a question; one from somebody who has a place already; and a place that an error gives back."""
    archive = Archive(endpoint)
    if how == "asks":
        archive.find_studies({"PatientID": f"P{number}"})
        return "answered"
    try:
        with slot(endpoint):
            archive.find_studies({"PatientID": f"P{number}"})
            if how == "holds and fails":
                raise KeyError(how)
    except KeyError:
        return "failed"
    return "answered"


def all_back(endpoint: Endpoint, size: int) -> None:
    """Every place can be had at once again."""
    together = threading.Barrier(size)

    def take(_: int) -> None:
        with slot(endpoint):
            together.wait(10)

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(take, range(size)))
