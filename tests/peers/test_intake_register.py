"""The register on a real SQLite file: leases, attempts, deliveries, and processes that compete and die."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from blocks.register import MAX_CRASHES, MAX_TRIES, Register
from blocks.register_rows import Lease
from rapha.declaration import read_declaration
from rapha.errors import ConfigurationError, PeerError, Refusal
from tests.fixtures.intake import OTHER, OWNER, document, job_of, signed

NOW, LEASE = 1_800_000_000, 60


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    held = Register.at(tmp_path / "register.sqlite")
    yield held
    held.close()


def submit(register: Register, raw: bytes | None = None, owner: str = OWNER, now: int = NOW) -> tuple[str, bool]:
    raw = raw or signed()
    declaration, _, job = read_declaration(raw)
    return register.submit(raw, declaration, job, owner, now=now)


def running(register: Register) -> tuple[str, Lease]:
    job, _ = submit(register)
    lease = register.claim("worker-1", NOW, LEASE)
    assert lease is not None and lease.job == job
    return job, lease


def state(register: Register, job: str) -> str:
    found = register.status(job)
    assert found is not None
    return found.state


def refused(register: Register, verb: str, *args: object, **kwargs: object) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refusal:
        getattr(register, verb)(*args, **kwargs)
    return refusal.value.codes


# -- how a job comes in


def test_the_same_declaration_is_the_same_job(register: Register) -> None:
    raw = signed()
    job, new = submit(register, raw)
    assert new and submit(register, raw) == (job, False)
    assert register.document(job) == raw and len(register.jobs()) == 1


def test_A12_a_client_nonce_is_one_declarations(register: Register) -> None:
    first = document()
    submit(register, signed(first))
    other = signed(document(client_nonce=first["client_nonce"], deadline=first["deadline"] + 1))
    with pytest.raises(Refusal) as refusal:
        submit(register, other)
    assert refusal.value.codes == ("client-nonce-reused",)
    assert register.status(job_of(other)) is None


def test_A12_an_owners_job_cannot_be_sent_or_replaced_by_another(register: Register) -> None:
    raw = signed()
    with pytest.raises(Refusal) as refusal:
        submit(register, raw, owner=OTHER)
    assert refusal.value.codes == ("owner-mismatch",) and register.jobs() == []
    job, _ = submit(register, raw)
    with pytest.raises(Refusal):
        submit(register, raw, owner=OTHER)
    assert register.document(job) == raw


def test_another_owner_may_use_the_same_client_nonce(register: Register) -> None:
    first = document()
    submit(register, signed(first))
    assert submit(register, signed(document(owner=OTHER, client_nonce=first["client_nonce"])), owner=OTHER)[1]


def test_A13_a_job_is_shown_to_its_owner_alone(register: Register) -> None:
    job, _ = submit(register)
    assert register.status(job, OWNER) and register.status(job)
    assert register.status(job, OTHER) is None and register.jobs(OTHER) == []
    assert refused(register, "cancel", job, now=NOW, owner=OTHER) == ("job-unknown",)


def test_what_was_answered_is_on_disk_after_kill_9(tmp_path: Path) -> None:
    """WAL and synchronous=FULL: the row of an answered submit survives the process."""
    script = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom blocks.register import Register\n"
        "from rapha.declaration import read_declaration\nraw = Path(sys.argv[2]).read_bytes()\n"
        "declaration, _, job = read_declaration(raw)\n"
        "Register.at(Path(sys.argv[1])).submit(raw, declaration, job, 'team-a', now=1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    raw = signed()
    (tmp_path / "job.json").write_bytes(raw)
    command = [sys.executable, "-c", script, str(tmp_path / "register.sqlite"), str(tmp_path / "job.json")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    register = Register.at(tmp_path / "register.sqlite")
    assert state(register, job_of(raw)) == "submitted" and register.document(job_of(raw)) == raw
    assert (tmp_path / "register.sqlite").stat().st_mode & 0o077 == 0
    with register._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


# -- leases


def test_a_claimed_job_is_nobody_elses(register: Register) -> None:
    job, lease = running(register)
    assert (lease.number, lease.until, lease.resumes) == (1, NOW + LEASE, False) and len(lease.nonce) == 64
    assert register.claim("worker-2", NOW, LEASE) is None
    assert register.claim("worker-2", NOW, LEASE, job=job) is None
    facts = register.facts(job)
    assert (facts.registered, facts.owner, facts.attempt, facts.nonce) == (True, OWNER, 1, lease.nonce)


def test_the_oldest_is_claimed_first_or_the_one_asked_for(register: Register) -> None:
    jobs = [submit(register, now=NOW + n)[0] for n in range(3)]
    assert register.owed() == jobs
    assert (first := register.claim("w", NOW, LEASE)) and first.job == jobs[0]
    assert (asked := register.claim("w", NOW, LEASE, job=jobs[2])) and asked.job == jobs[2]
    assert register.claim("w", NOW, LEASE, job="sha256:" + "0" * 64) is None


def _claim_all(path: Path, worker: str, out: "SimpleQueue[tuple[str, list[str]]]") -> None:
    register, got = Register.at(path), []
    while lease := register.claim(worker, NOW, LEASE):
        got.append(lease.job)
    out.put((worker, got))


def test_J08_two_workers_never_get_one_job(tmp_path: Path) -> None:
    path = tmp_path / "register.sqlite"
    register = Register.at(path)
    jobs = {submit(register)[0] for _ in range(24)}
    register.close()
    fork = multiprocessing.get_context("fork")
    out: SimpleQueue[tuple[str, list[str]]] = fork.SimpleQueue()
    workers = [fork.Process(target=_claim_all, args=(path, f"worker-{n}", out)) for n in range(4)]
    for worker in workers:
        worker.start()
    got = [job for _ in workers for job in out.get()[1]]
    for worker in workers:
        worker.join()
    assert len(got) == len(jobs) and set(got) == jobs


def _submit_same(path: Path, raw: bytes, out: "SimpleQueue[bool]") -> None:
    out.put(submit(Register.at(path), raw)[1])


def test_J08_one_declaration_sent_four_times_at_once_is_one_row(tmp_path: Path) -> None:
    path, raw = tmp_path / "register.sqlite", signed()
    fork = multiprocessing.get_context("fork")
    out: SimpleQueue[bool] = fork.SimpleQueue()
    senders = [fork.Process(target=_submit_same, args=(path, raw, out)) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sorted(out.get() for _ in senders) == [False, False, False, True]


def test_a_lease_is_renewed_by_its_holder_until_it_runs_out(register: Register) -> None:
    _, lease = running(register)
    longer = register.renew(lease, NOW + 50, LEASE)
    assert longer.until == NOW + 110
    register.stage(longer, "escrow", NOW + 100)
    assert refused(register, "renew", longer, NOW + 110, LEASE) == ("lease-lost",)
    assert refused(register, "stage", longer, "manifest", NOW + 110) == ("lease-lost",)


def test_J08_who_lost_a_lease_can_write_nothing_more(register: Register) -> None:
    job, lease = running(register)
    (lost,) = register.reap(NOW + LEASE)
    assert (lost.job, lost.attempt, lost.state) == (job, 1, "crashed") and state(register, job) == "crashed"
    second = register.claim("worker-1", NOW + LEASE, LEASE)
    assert second and (second.number, second.resumes) == (2, False) and second.nonce != lease.nonce
    for verb, args in (("renew", (NOW + LEASE, 9)), ("stage", ("settle", NOW + LEASE))):
        assert refused(register, verb, lease, *args) == ("lease-lost",)
    assert refused(register, "finish", lease, "done", now=NOW + LEASE) == ("lease-lost",)
    assert state(register, job) == "running"


def test_the_living_are_not_reaped(register: Register) -> None:
    job, _ = running(register)
    assert register.reap(NOW + LEASE - 1) == [] and state(register, job) == "running"


def test_what_crashes_too_often_is_a_dead_letter(register: Register) -> None:
    job, _ = submit(register)
    now = NOW
    for n in range(1, MAX_CRASHES + 1):
        lease = register.claim("w", now, LEASE)
        assert lease and lease.number == n
        register.stage(lease, "train", now)
        now += LEASE
        register.reap(now)
    assert state(register, job) == "dead" and register.claim("w", now, LEASE) is None
    (letter,) = register.dead_letters()
    assert (letter.job, letter.attempt, letter.kind, letter.stage) == (job, MAX_CRASHES, "attempt", "train")
    register.retry(job, now=now)
    assert register.dead_letters() == [] and state(register, job) == "submitted"
    assert (again := register.claim("w", now, LEASE)) and again.number == MAX_CRASHES + 1


@pytest.mark.parametrize("stage", ["settle", "deliver"])
def test_J09_settle_and_deliver_go_on_in_place(register: Register, stage: str) -> None:
    job, lease = running(register)
    register.stage(lease, "settle", NOW)
    register.stage(lease, stage, NOW)
    assert refused(register, "stage", lease, "train", NOW) == ("stage-backwards",)
    register.reap(NOW + LEASE)
    assert state(register, job) == "owing"
    again = register.claim("worker-2", NOW + LEASE, LEASE)
    assert again and (again.number, again.nonce, again.stage, again.resumes) == (1, lease.nonce, stage, True)
    assert refused(register, "renew", lease, NOW + LEASE, LEASE) == ("lease-lost",)  # the same attempt, another's lease
    assert refused(register, "finish", lease, "done", now=NOW + LEASE) == ("lease-lost",)
    register.finish(again, "failed", ["chain-unreachable"], "node", now=NOW + LEASE)
    assert state(register, job) == "dead"
    register.retry(job, now=NOW + LEASE)
    third = register.claim("worker-2", NOW + LEASE, LEASE)
    assert third and third.number == 1 and third.resumes
    register.finish(third, "done", now=NOW + LEASE)
    assert state(register, job) == "done"


# -- a person's commands


@pytest.mark.parametrize(("end", "side", "again"), [("refused", "node", True), ("refused", "job", False), ("done", "", False)])
def test_only_a_node_side_refusal_is_tried_again(register: Register, end: str, side: str, again: bool) -> None:
    job, lease = running(register)
    register.finish(lease, end, ["some-code"], side, now=NOW)  # type: ignore[arg-type]
    assert register.claim("w", NOW, LEASE) is None
    if again:
        register.retry(job, now=NOW)
        assert (second := register.claim("w", NOW, LEASE)) and second.number == 2 and second.nonce != lease.nonce
    else:
        assert refused(register, "retry", job, now=NOW) == ("retry-not-allowed",)


def test_what_runs_or_waits_is_not_tried_again(register: Register) -> None:
    job, _ = submit(register)
    assert refused(register, "retry", job, now=NOW) == ("retry-not-allowed",)
    register.claim("w", NOW, LEASE)
    assert refused(register, "retry", job, now=NOW) == ("retry-not-allowed",)
    assert refused(register, "retry", "sha256:" + "0" * 64, now=NOW) == ("job-unknown",)


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_stage(register: Register) -> None:
    waiting, _ = submit(register)
    assert register.cancel(waiting, now=NOW, owner=OWNER) == "cancelled" and register.claim("w", NOW, LEASE) is None
    job, lease = running(register)
    assert register.cancel(job, now=NOW) == "running"
    assert refused(register, "stage", lease, "escrow", NOW) == ("job-cancelled",)
    register.finish(lease, "cancelled", ["job-cancelled"], "job", now=NOW)
    assert state(register, job) == "cancelled"
    assert refused(register, "retry", job, now=NOW) == ("retry-not-allowed",)


def test_a_cancelled_job_whose_flow_is_dead_ends_cancelled(register: Register) -> None:
    job, _ = running(register)
    register.cancel(job, now=NOW)
    register.reap(NOW + LEASE)
    assert state(register, job) == "cancelled"


def test_nothing_is_cancelled_once_money_may_be_on_its_way(register: Register) -> None:
    job, lease = running(register)
    register.stage(lease, "settle", NOW)
    assert refused(register, "cancel", job, now=NOW) == ("cancel-too-late",)
    register.finish(lease, "done", now=NOW)
    assert refused(register, "cancel", job, now=NOW) == ("cancel-too-late",)


# -- deliveries


def test_a_delivery_is_owed_once_and_waits_longer_each_time(register: Register, tmp_path: Path) -> None:
    job, lease = running(register)
    one, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    for _ in range(2):
        register.owe(job, lease.number, "receipt", one, tmp_path / "receipt.json", now=NOW)
    assert refused(register, "owe", job, lease.number, "receipt", other, tmp_path / "x", now=NOW) == ("delivery-conflict",)
    (delivery,) = register.due(NOW)
    assert (delivery.kind, delivery.digest, delivery.path) == ("receipt", one, tmp_path / "receipt.json")
    now, waits = NOW, []
    for _ in range(MAX_TRIES):
        register.undelivered(delivery.id, "orchestrator-unreachable", now=now)
        assert register.due(now) == []
        ahead = next((w for w in range(1, 3700) if register.due(now + w)), 0) if len(waits) < 4 else 3600
        waits.append(ahead)
        now += 3600
    assert waits[0] < waits[2] < waits[3] <= 80
    assert register.due(now + 10**6) == []
    (letter,) = register.dead_letters()
    assert (letter.kind, letter.stage, letter.codes) == ("delivery", "receipt", ("orchestrator-unreachable",))


def test_a_delivery_that_was_made_is_not_made_again(register: Register, tmp_path: Path) -> None:
    job, lease = running(register)
    register.owe(job, lease.number, "result", "sha256:" + "1" * 64, tmp_path / "r", now=NOW + 50)
    assert register.due(NOW) == []
    (delivery,) = register.due(NOW, job=job)
    register.delivered(delivery.id)
    assert register.due(NOW + 100) == register.due(NOW, job=job) == []
    register.owe(job, lease.number, "result", "sha256:" + "1" * 64, tmp_path / "r", now=NOW)
    assert register.due(NOW + 100) == []


# -- nonces and faults


def test_a_nonce_is_spent_once_and_forgotten_in_time(register: Register) -> None:
    assert register.spend_nonce("key-a", "n" * 16, now=NOW, forget_at=NOW + 600)
    assert not register.spend_nonce("key-a", "n" * 16, now=NOW + 600, forget_at=NOW + 1200)
    assert register.spend_nonce("key-b", "n" * 16, now=NOW, forget_at=NOW + 600)
    assert register.spend_nonce("key-a", "n" * 16, now=NOW + 601, forget_at=NOW + 1200)


def test_J06_a_failing_database_is_a_failing_peer_and_quotes_no_row(register: Register, tmp_path: Path) -> None:
    raw = signed()
    submit(register, raw)
    with sqlite3.connect(tmp_path / "register.sqlite") as other:
        other.execute("DROP TABLE attempts")
    with pytest.raises(PeerError) as error:
        register.claim("w", NOW, LEASE)
    assert error.value.codes == ("register-unavailable",) and OWNER not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql+pymysql://x/y"])
def test_a_register_that_is_not_durable_is_not_opened(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Register(url)
    assert error.value.codes == ("register-url",)


WORKER = """
import sys, time
from pathlib import Path
from blocks.register import Register
register = Register.at(Path(sys.argv[1]))
while lease := register.claim("w", int(time.time()), 1):
    print(lease.job, lease.number, flush=True)
    for stage in ("intake", "escrow", "train", "settle"):
        register.stage(lease, stage, int(time.time()))
    register.finish(lease, "done", now=int(time.time()))
    print("done", flush=True)
"""


def test_J09_kill_9_at_any_moment_loses_no_job_and_finishes_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "register.sqlite"
    register = Register.at(path)
    jobs = {submit(register, now=int(time.time()))[0] for _ in range(6)}
    finished: list[str] = []
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        register.reap(int(time.time()) + 2)
        finished = [job.job for job in register.jobs() if job.state == "done"]
        for job in [job.job for job in register.jobs() if job.state == "dead"]:
            register.retry(job, now=int(time.time()))
        if len(finished) == len(jobs):
            break
    while lease := register.claim("w", int(time.time()), 5):
        register.finish(lease, "done", now=int(time.time()))
    assert {job.job for job in register.jobs() if job.state == "done"} == jobs
