"""Questions and secure channels: what is asked is what was meant, each instant once; a handshake stands where all is right."""

import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from blocks.archive import STUDY_KEYS, Archive
from blocks.dimse.services import FIND
from blocks.endpoint import Endpoint, TlsSettings, tls_code
from policies.polling import DAY, Window, keys_of, split
from rapha.errors import PeerError
from tests.fixtures.certificates import Authority, authority

QUIET = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\^=~"), min_size=1, max_size=12)
KEYS = st.fixed_dictionaries(
    {},
    optional={
        "PatientID": TEXTS | st.builds("{}*".format, TEXTS),
        "PatientName": st.builds("{}^{}*".format, TEXTS, TEXTS),
        "AccessionNumber": TEXTS,
        "StudyDate": st.dates().map(lambda day: f"{day.year:04d}{day:%m%d}-") | st.just("20240101-20240131"),
        "StudyTime": st.just("101500-101559.999999"),
        "StudyInstanceUID": st.from_regex(r"\A2\.25\.[1-9][0-9]{0,30}\Z"),
    },
)


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[Archive, list[Dataset]]]:
    """An archive that finds nothing, and every question that it was asked."""
    questions: list[Dataset] = []

    def find(event: Any) -> Iterator[tuple[int, None]]:
        questions.append(event.identifier)
        yield 0x0000, None

    ae = AE("PACS")
    ae.add_supported_context(FIND)
    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    facts = {"name": "primary", "host": "127.0.0.1", "port": server.socket.getsockname()[1], "ae_title": "PACS"}
    yield Archive(Endpoint(**facts, calling_ae_title="RAPHA")), questions
    server.shutdown()


@QUIET
@given(KEYS)
def test_every_key_reaches_the_archive_under_its_attribute_as_it_was_meant(
    asked: tuple[Archive, list[Dataset]], keys: dict[str, str]
) -> None:
    """PS3.4 C.4.1.1.3: the keys to match, those to be returned empty, the level, and the character set that they are in."""
    archive, questions = asked
    assert archive.find_studies(keys) == []
    asking = questions.pop()
    assert (asking.QueryRetrieveLevel, asking.SpecificCharacterSet) == ("STUDY", "ISO_IR 192")
    assert {name: str(asking[name].value) for name in keys} == keys
    assert all(name in asking and (name in keys or not asking[name].value) for name in STUDY_KEYS)
    assert {element.keyword for element in asking} == {"QueryRetrieveLevel", "SpecificCharacterSet", *STUDY_KEYS, *keys}


@settings(QUIET, max_examples=6)
@given(st.text("abcXYZ", min_size=1, max_size=12).filter(lambda name: name not in STUDY_KEYS))
def test_a_key_that_is_no_attribute_is_never_asked(asked: tuple[Archive, list[Dataset]], name: str) -> None:
    archive, questions = asked
    with pytest.raises(PeerError) as failed:
        archive.find_studies({name: "1"})
    assert failed.value.codes == ("dimse-key-unknown",) and questions == []


def matches(keys: dict[str, str], at: int, fraction: str) -> bool:
    """Range matching by the words of PS3.4 C.2.2.2.5: each attribute apart, as text, both ends included."""
    moment = datetime.fromtimestamp(at, UTC)
    values = {"StudyDate": f"{moment:%Y%m%d}", "StudyTime": f"{moment:%H%M%S}{fraction}"}
    for name, key in keys.items():
        first, dash, last = key.partition("-")
        if not first <= values[name] <= (last if dash else first):
            return False
    return True


@settings(QUIET, max_examples=200)
@given(st.integers(0, 20_000), st.integers(1, 40), st.integers(1, 3600), st.data())
def test_each_instant_of_a_window_is_asked_for_once_and_no_other(
    first: int, days: int, smallest: int, data: st.DataObject
) -> None:
    whole = Window(first * DAY, (first + days) * DAY - 1)
    at = data.draw(st.integers(whole.first, whole.last) | st.sampled_from([whole.first, whole.last]))
    leaves, todo = [], [whole]
    for _ in range(40):
        window = todo.pop() if todo else None
        if window is None or window.last - window.first + 1 <= smallest or not window.first <= at <= window.last:
            leaves += [window] if window else []
        else:
            todo += split(window, smallest)
    fraction = data.draw(st.sampled_from(["", ".5", ".000000", ".999999"]))
    assert sum(matches(keys_of(one), at, fraction) for one in [*leaves, *todo]) == 1
    outside = data.draw(st.sampled_from([whole.first - 1, whole.last + 1, whole.first - DAY, whole.last + DAY]))
    assert outside < 0 or not any(matches(keys_of(one), outside, fraction) for one in [*leaves, *todo])


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@cache
def authorities() -> dict[str, Authority]:
    folder = Path(tempfile.mkdtemp(prefix="rapha-tls-"))
    return {"ours": authority(folder / "ours"), "foreign": authority(folder / "foreign", "Foreign")}


@cache
def issued(who: str, name: str, expired: bool) -> tuple[Path, Path]:
    return authorities()[who].issue(name, expired=expired)


@pytest.fixture(scope="module", autouse=True)
def _without_remains() -> Iterator[None]:
    import shutil

    yield
    shutil.rmtree(authorities()["ours"].folder.parent)


PEERS = st.fixed_dictionaries(
    {
        "authority": st.sampled_from(["ours", "ours", "foreign"]),
        "name": st.sampled_from(["pacs.test", "pacs.test", "other.test"]),
        "expired": st.sampled_from([False, False, True]),
        "versions": st.sampled_from([(V12, V12), (V13, V13), (V12, V13)]),
        "asks": st.booleans(),
    }
)
OURS = st.fixed_dictionaries(
    {"version": st.sampled_from(["TLS_1_3", "TLS_1_2"]), "certificate": st.sampled_from(["ours", "ours", "foreign", None])}
)


def settings_of(ours: dict[str, Any], name: str = "rapha.test") -> TlsSettings:
    certificate, key = issued(ours["certificate"], name, False) if ours["certificate"] else (None, None)
    return TlsSettings(
        ca_bundle=authorities()["ours"].bundle,
        cert_file=certificate,
        key_file=key,
        version=ours["version"],
        mutual_auth=certificate is not None,
    )


def peer(how: dict[str, Any], side: int) -> ssl.SSLContext:
    """The other end, by OpenSSL alone."""
    context = ssl.SSLContext(side)
    context.load_cert_chain(*issued(how["authority"], how["name"], how["expired"]))
    context.minimum_version, context.maximum_version = how["versions"]
    context.load_verify_locations(authorities()["ours"].bundle)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if how["asks"] else ssl.CERT_NONE
    return context


def spoken(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[str, str]:
    """("", version) when a word passed in both directions, else (the code of why not, ""). Over memory, with real TLS."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
    failure = ""
    for turn in range(20):
        end = ends[turn % 2]
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            failure = failure or (tls_code(error) if turn % 2 == 0 else "their-end")
    if failure:
        return failure, ""
    for one, other in (ends, ends[::-1]):
        one.write(b"word")
        assert other.read(4) == b"word"
    return "", str(ends[0].version())


def version_fits(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    wanted = V13 if ours["version"] == "TLS_1_3" else V12
    return theirs["versions"][0] <= wanted <= theirs["versions"][1]  # type: ignore[no-any-return]


@QUIET
@given(OURS, PEERS)
def test_we_speak_in_the_configured_version_or_not_at_all(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    failure, version = spoken(settings_of(ours).client(), peer(theirs, ssl.PROTOCOL_TLS_SERVER), "pacs.test")
    assert version in ("", {"TLS_1_3": "TLSv1.3", "TLS_1_2": "TLSv1.2"}[ours["version"]])
    assert version_fits(ours, theirs) or failure == "tls-handshake-failed" or failure == "their-end"


@QUIET
@given(PEERS.map(lambda how: {**how, "asks": False, "versions": (V12, V13)}))
def test_an_archive_is_spoken_to_only_by_its_own_valid_certificate(theirs: dict[str, Any]) -> None:
    failure, _ = spoken(
        settings_of({"version": "TLS_1_3", "certificate": "ours"}).client(), peer(theirs, ssl.PROTOCOL_TLS_SERVER), "pacs.test"
    )
    wrong = {
        "tls-certificate-untrusted": theirs["authority"] == "foreign",
        "tls-certificate-expired": theirs["expired"],
        "tls-name-differs": theirs["name"] != "pacs.test",
    }
    assert (failure == "") is not any(wrong.values())
    assert failure == "" or wrong[failure], "the code is one of what is wrong"


@QUIET
@given(OURS, st.booleans())
def test_our_certificate_is_shown_to_who_asks_and_one_that_is_not_ours_is_refused(ours: dict[str, Any], asks: bool) -> None:
    theirs = {"authority": "ours", "name": "pacs.test", "expired": False, "versions": (V12, V13), "asks": asks}
    failure, version = spoken(settings_of(ours).client(), peer(theirs, ssl.PROTOCOL_TLS_SERVER), "pacs.test")
    assert (failure == "") is (not asks or ours["certificate"] == "ours"), (failure, version)


@QUIET
@given(PEERS, st.sampled_from(["TLS_1_3", "TLS_1_2"]))
def test_who_sends_to_the_receiver_shows_a_valid_certificate(theirs: dict[str, Any], version: str) -> None:
    ours = {"version": version, "certificate": "ours"}
    sender = peer({**theirs, "asks": True}, ssl.PROTOCOL_TLS_CLIENT)
    failure, _ = spoken(sender, settings_of(ours, "receiver.test").server(), "receiver.test")
    assert (failure == "") is (theirs["authority"] == "ours" and not theirs["expired"] and version_fits(ours, theirs))
