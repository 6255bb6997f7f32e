"""The audit trail for any patient, person and time: found by who it was about, in clear nowhere, kept as long as is said."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.audit import Act, AuditTrail, Patient, Study, Wanted, audited
from policies.alerts import CAUSES, alert_type
from policies.audit_codes import EVENT_TYPES
from policies.audit_events import PHI_KINDS
from policies.audit_message import parse
from rapha.errors import PeerError, Refusal
from rapha.trail import verify_trail
from tests.fixtures.audit import DAY, SIGNER, START, new_trail

QUIET = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
YEAR = 31_557_600
ONE = Act(person="p", source="A", destination="B", patient=Patient("1"), studies=(Study("1"),))
# A letter that no word of the format has: a name may be any, but "operation" stands in every entry.
NAMES = st.text(st.characters(codec="utf-8", categories=["Lu", "Ll", "Nd"]), min_size=8, max_size=20).map("Ž{}".format)


@contextmanager
def trails(**options: object) -> Iterator[AuditTrail]:
    with tempfile.TemporaryDirectory(prefix="rapha-") as folder:
        yield new_trail(Path(folder) / "audit", **options)  # type: ignore[arg-type]


@QUIET
@given(st.sampled_from(sorted(PHI_KINDS)), NAMES, NAMES, NAMES, st.integers(1, 10**9))
def test_every_access_to_a_patient_is_found_by_whom_it_was_about_and_is_in_clear_nowhere(
    kind: str, person: str, patient: str, name: str, study: int
) -> None:
    uid = f"2.25.{study}"
    act = Act(person=person, source="PACS", destination="RAPHA", patient=Patient(patient, name), studies=(Study(uid),))
    with trails() as trail:
        with audited(trail, kind, act):
            pass
        trail.record("transfer", Act(person="x", source="A", destination="B", patient=Patient("-"), studies=(Study("2.25.0"),)))
        for wanted in (
            Wanted(patient=trail.pseudonym("patient", patient)),
            Wanted(person=trail.pseudonym("person", person)),
            Wanted(study=trail.pseudonym("study", uid)),
        ):
            found = list(trail.search(wanted))
            assert [(one.kind, one.stage) for one in found] == [(kind, "begin"), (kind, "end")]
        assert trail.statistics()["phi_access_count"] == 2
        xml = [raw for _, raw in trail.messages(Wanted(study=trail.pseudonym("study", uid)))]
        assert xml and all(subject.id == patient for raw in xml for subject in parse(raw).patients)
        stored = b"".join(path.read_bytes() for path in trail.folder.rglob("*") if path.is_file())
        for clear in (person, patient, name, uid):
            assert not any(form in stored for form in (clear.encode(), clear.encode("utf-16-le"), clear.encode().hex().encode()))


CODES = st.sampled_from(sorted(CAUSES)).flatmap(
    lambda cause: st.from_regex(r"\A[a-z]{1,8}\Z").map(lambda end: f"{cause}{end}") if cause.endswith("-") else st.just(cause)
)
PLAIN = st.sampled_from(["dimse-timeout", "archive-incomplete", "store-refused", "report-iod", "lease-lost", "pacs-unreachable"])


@QUIET
@given(CODES, st.lists(PLAIN, max_size=3), st.booleans())
def test_a_failure_of_security_is_an_alert_of_its_type_with_its_code(code: str, others: list[str], peer: bool) -> None:
    """PS3.15 A.5.3.11: who, what type of CID 403, and the outcome; an everyday failure is none."""
    kind = alert_type([*others, code])
    assert kind in EVENT_TYPES and alert_type(others) == ""
    with trails() as trail:
        error: Exception = PeerError(code, "x") if peer else Refusal([code])
        with pytest.raises(type(error)), audited(trail, "alert", Act(person="node", type=kind, subject="urn:rapha:x")):
            raise error
        (end,) = [raw for one, raw in trail.messages() if one.stage == "end"]
        event = parse(end).event
        assert (event.id.code, event.types[0].code, event.outcome) == ("110113", kind, 4 if peer else 8)
        assert event.description == code and trail.statistics()["failed_events"] == 1


@QUIET
@given(st.integers(1, 10), st.lists(st.integers(1, 900), min_size=1, max_size=5), st.integers(-3, 3), st.integers(0, 4))
def test_a_trail_is_kept_for_its_years_and_what_is_older_goes_whole(
    years: int, pauses: list[int], slack: int, until: int
) -> None:
    """pauses: days between two segments; the last segment stays, whatever its age."""
    with trails(period="day", years=years) as trail:
        days = [0]
        for pause in pauses:
            days.append(days[-1] + pause)
        for day in days:
            trail.record("transfer", ONE, at=START + day * DAY)
        now = START + days[min(until, len(days) - 1)] * DAY + years * YEAR + slack
        old = [n for n, day in enumerate(days[:-1], 1) if START + day * DAY + years * YEAR <= now]
        assert trail.expired(now) == old
        assert trail.retire("admin", now=now) == old
        kept = [one for one in trail.search(Wanted(kinds=("transfer",)))]
        assert [one.at for one in kept] == [START + day * DAY for day in days[len(old) :]]
        report = verify_trail(trail.folder, SIGNER.public_key())
        assert (report.ok, report.retired) == (True, len(old))


@given(st.integers(-5, 30).filter(lambda years: not 1 <= years <= 10) | st.sampled_from([None, "7", 7.0, True]))
def test_no_other_number_of_years_is_taken(years: object) -> None:
    from rapha.errors import ConfigurationError

    with pytest.raises(ConfigurationError) as wrong, trails(years=years):
        pass
    assert wrong.value.codes == ("audit-retention",)


def test_the_key_of_one_trail_finds_nobody_in_another() -> None:
    with trails(key=secrets.token_bytes(32)) as one, trails(key=secrets.token_bytes(32)) as other:
        assert one.pseudonym("patient", "4711") != other.pseudonym("patient", "4711")
