"""The training flow: one job, one attempt, one flow run; it reads like the protocol.

    webhook -> intake -> escrow -> manifest -> workload -> policy -> attestation -> cut -> query -> retrieve
            -> [door train] -> train -> output -> reattestation -> [door seal] -> seal -> reconnect
            -> [door settle] -> settle -> deliver

Every stage is called directly, so that a refusal raises here. What keeps data in is not this order but the ledger, read at the
three doors.
"""

import time
from contextlib import ExitStack
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.flows import Flow

from blocks.launcher import SandboxSpec
from flows.ending import Ending, conclude
from flows.lease import LEASE_SECONDS, Held
from flows.node import Node
from flows.stages import stage
from flows.sweeping import swept
from flows.view import PARTIES, View, short, tokens
from policies.gate import Evidence
from policies.manifest import ManifestEvidence
from policies.query import QueryEvidence
from policies.records import Record, read_records, records_root
from rapha.canonical import digest
from rapha.declaration import Declaration, read_declaration
from rapha.errors import RaphaError, Refusal
from rapha.receipt import verify_receipt
from tasks.attempt import Attempt
from tasks.gate import Cleared, open_door, was_opened
from tasks.guarding.identifiers import record_patterns
from tasks.stage import coded
from tasks.training import attest as attesting
from tasks.training import cut as cutting
from tasks.training import deliver as delivering
from tasks.training import escrow as escrowing
from tasks.training import guard as guarding
from tasks.training import intake as taking_in
from tasks.training import manifest as listing
from tasks.training import policy as deciding
from tasks.training import query as querying
from tasks.training import reconnect as reconnecting
from tasks.training import retrieve as retrieving
from tasks.training import seal as sealing
from tasks.training import settle as settling
from tasks.training import train as teaching
from tasks.training import workload as scanning

intake = stage(taking_in.intake, "1 intake")
escrow = stage(escrowing.escrow, "2 escrow", retries=6)  # finality takes its time
manifest = stage(listing.manifest, "3 manifest")
workload = stage(scanning.workload, "4 workload")
policy = stage(deciding.policy, "5 policy")
attestation = stage(attesting.attest, "6 attestation")
cut = stage(cutting.cut, "7 cut")
query = stage(querying.query, "8 query")
retrieve = stage(retrieving.retrieve, "9 retrieve")
training = stage(teaching.train, "10 train", retries=0)
output = stage(guarding.guard, "11 output", retries=0)
reattestation = stage(attesting.reattest, "12a attest again")
seal = stage(sealing.seal, "12b seal", retries=0)
reconnect = stage(reconnecting.reconnect, "13 reconnect")
settle = stage(settling.settle, "14 settle", retries=6)
deliver = stage(delivering.deliver, "15 deliver", retries=6)

_endings: dict[str, Ending] = {}


def halt(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The state hook: ends the attempt wherever it stands. A killed process runs no hook; then the sweep does the same."""
    ending = _endings.pop(str(flow_run.parameters.get("job")), None)
    if ending is not None:
        conclude(ending, "cancelled" if state.is_cancelled() or state.is_cancelling() else "")


def named() -> str:
    """The run's name in the UI: `train-` and the job's first twelve digits."""
    return f"train-{short(str(runtime.flow_run.parameters['job']))}"


@flow(
    name="train",
    flow_run_name=named,
    retries=0,
    persist_result=False,
    result_serializer="json",
    log_prints=False,
    on_failure=[halt],
    on_crashed=[halt],
    on_cancellation=[halt],
)
def train(job: str) -> dict[str, Any]:
    """Runs the job with this id, if it is owed: `sha256:` and 64 hex digits. What comes back is digests, codes and counts."""
    node = Node.open()
    lease = node.register.claim(node.worker, int(time.time()), LEASE_SECONDS, job=job)
    if lease is None:
        return {"job": job, "state": "not-owed"}
    ending = _endings[job] = Ending(node, lease, node.attempt(lease))
    with Held(node.register, lease) as held:
        try:
            result = coded(_settled if lease.resumes else _run)(node, held, ending)  # what leaves is codes
        except RaphaError as error:
            ending.error = error
            raise
    _endings.pop(job)
    return result


def _run(node: Node, held: Held, ending: Ending) -> dict[str, Any]:
    """All gates, training, and what follows."""
    lease, attempt = held.lease, ending.attempt
    declaration, _, _ = read_declaration(lease.document)
    view = View(lease.job, lease.number, attempt.mode)
    with ExitStack() as open_connections:
        run = _Run(node, held, ending, attempt, declaration, view, open_connections)
        try:
            bound = run.before_the_cut()
            records = run.behind_the_cut(bound)
            run.trained(records)
        except Refusal as refusal:
            view.refused(refusal.gate, refusal.codes, int(time.time()))
            raise
    return _settled(node, held, ending)


class _Run:
    """One attempt on its way: what several stages need, and what earlier gates have cleared."""

    def __init__(
        self,
        node: Node,
        held: Held,
        ending: Ending,
        attempt: Attempt,
        declaration: Declaration,
        view: View,
        connections: ExitStack,
    ) -> None:
        self.node, self.held, self.ending, self.attempt = node, held, ending, attempt
        self.declaration, self.view, self.connections = declaration, view, connections
        self.blobs = node.state / "blobs"

    def enter(self, name: str) -> None:
        """A stage begins: the register knows, and a lost lease or a cancelled job ends it here."""
        self.held.enter(name)

    def passed(self, cleared: Cleared[Any]) -> None:
        self.view.verdict(cleared.verdict.to_json())

    def before_the_cut(self) -> Cleared[Evidence]:
        """Stages 1 to 6: everything that needs the outside, and no data yet."""
        node, attempt, declaration = self.node, self.attempt, self.declaration
        limits = node.limits
        self.enter("intake")
        taken = intake(
            self.held.lease.document,
            attempt,
            owner_keys=node.trusted("ai-teams"),
            facts=node.register.facts(attempt.job),
            orchestrator=node.orchestrator,
            blobs=self.blobs,
            node_id=node.node_id,
            limits=limits.intake,
        )
        self.passed(taken)
        self.enter("escrow")
        funded = escrow(taken, attempt, declaration, node.chain, limits.escrow, node.node_id)
        self.passed(funded)
        self.enter("manifest")
        self.manifest = manifest(
            funded,
            attempt,
            declaration,
            node.settings.path("RAPHA_DATASET_MANIFEST_PATH"),
            node.settings.path("RAPHA_DATASET_RECORDS_PATH"),
            node.trusted("manifest"),
            node.settings.outer_query,
            limits.manifest,
        )
        self.passed(self.manifest)
        self.enter("workload")
        self.workload = workload(
            self.manifest,
            attempt,
            declaration,
            self.blobs,
            node.trusted("workload"),
            node.settings.path("RAPHA_TRAINER_COMMAND"),
            limits.workload,
            node.known_wheels(),
        )
        self.passed(self.workload)
        return self._decided()

    def _decided(self) -> Cleared[Evidence]:
        """Policy and attestation."""
        node, attempt = self.node, self.attempt
        self.enter("policy")
        self.policy = policy(
            self.workload,
            attempt,
            self.manifest.evidence,
            self.workload.evidence,
            node.engine,
            node.limits.policy,
            outside_line=node.settings.text("RAPHA_WAN_INTERFACE"),
        )
        self.passed(self.policy)
        self.enter("attestation")
        self.site = node.attested_site()
        self.bound = attesting.Bound(
            workload=self.workload.evidence.workload,
            policy=self.policy.evidence.documents,
            manifest=self.manifest.evidence.manifest,
            recipient=digest(self.declaration.recipient.encode()),
        )
        self.attested = attestation(self.policy, attempt, self.bound, node.attester, self.site)
        self.passed(self.attested)
        return self.attested

    def behind_the_cut(self, attested: Cleared[Evidence]) -> Cleared[Evidence]:
        """Stages 7 to 9: the line goes down; only then is the archive asked."""
        node, attempt, limits = self.node, self.attempt, self.node.limits
        self.enter("cut")
        self.keeper = self.connections.enter_context(node.keeper())
        line = cut(attested, attempt, self.keeper, limits.cut)
        self.token = line.evidence.token
        self.passed(line)
        self.enter("query")
        self.reader = self.connections.enter_context(node.reader())
        facts, outer = _manifest_facts(self.manifest.evidence), node.settings.outer_query
        asked: Cleared[QueryEvidence] = query(line, attempt, self.reader, self.declaration, facts, outer, limits.query)
        self.passed(asked)
        self.enter("retrieve")
        checked = self.manifest.evidence.burned_in_checked
        fetched = retrieve(asked, attempt, self.reader, checked, limits.retrieve)
        self.passed(fetched)
        return fetched

    def trained(self, fetched: Cleared[Evidence]) -> None:
        """Stages 10 to 13: train behind the first door, seal behind the second, then the line comes back."""
        node, attempt, limits = self.node, self.attempt, self.node.limits
        self.enter("train")
        launcher = self.connections.enter_context(node.launcher())
        spec, cap = self._sandbox(), self.declaration.budget.max_records
        epochs = self.declaration.run.epochs

        def shown(handed: int, total: int) -> None:
            self.view.progress(handed, epochs * total)

        longest = self.declaration.run.max_seconds
        taught = training(
            fetched, attempt, node.gates, self.reader, launcher, self.keeper, spec, limits.train, cap, shown, seconds=longest
        )
        self.passed(taught)
        self.view.trained()
        self.enter("output")
        grant = guarding.Grant(max_bytes=self.manifest.evidence.max_output_bytes, max_metrics=self.manifest.evidence.max_metrics)
        released = output(
            taught,
            attempt,
            attempt.folder / "outputs",
            self.declaration,
            limits.output,
            grant=grant,
            forbidden=record_patterns(self._records()),
        )
        self.passed(released)
        self.enter("reattestation")
        again = reattestation(released, attempt, self.bound, node.attester, self.site, self.attested)
        self.passed(again)
        self.enter("seal")
        facts = self._seal_facts(taught, again)
        destroyed = {"destroyed": taught.evidence.reader_destroyed}
        sealed = seal(again, attempt, node.gates, self.declaration, facts, node.key("receipt"), lambda: destroyed)
        launcher.close()
        self.reader.close()
        self.enter("reconnect")
        back = reconnect(again, attempt, self.keeper, self.token, sealed.receipt_digest)
        self.passed(back)
        open_door("settle", node.gates, attempt, back)

    def _records(self) -> tuple[Record, ...]:
        """The records file again, for the guard to search by: still the one under the manifest's root, or nothing is searched."""
        try:
            records = read_records(self.node.settings.path("RAPHA_DATASET_RECORDS_PATH").read_bytes())
        except OSError:
            records = ()
        if not records or records_root(records) != self.manifest.evidence.root:
            raise Refusal(["records-root-differs"], "the records file changed since the manifest gate", gate="output")
        return records

    def _sandbox(self) -> SandboxSpec:
        run, wanted = self.declaration.run, self.declaration.workload
        return SandboxSpec(
            kind=wanted.kind,
            workload=_workload_path(self.blobs, self.attempt, self.declaration),
            workload_digest=wanted.digest if wanted.kind == "source" else self.workload.evidence.folder,
            entry_point=wanted.entry_point,
            launcher=self.node.settings.path("RAPHA_TRAINER_COMMAND"),
            launcher_digest=self.workload.evidence.launcher,
            weights=scanning.blob_path(self.blobs, wanted.base_weights) if wanted.base_weights else None,
            weights_digest=wanted.base_weights or "",
            environment=(
                ("RAPHA_EPOCHS", str(run.epochs)),
                ("RAPHA_BATCH_SIZE", str(run.batch_size)),
                ("RAPHA_SEED", str(run.seed)),
            ),
        )

    def _seal_facts(self, taught: Cleared[Any], again: Cleared[Any]) -> sealing.SealFacts:
        tcb = again.evidence.quote.tcb
        return sealing.SealFacts(
            declaration=digest(self.held.lease.document),
            manifest=self.manifest.evidence.manifest,
            policy=self.policy.evidence.documents,
            launcher=self.workload.evidence.launcher,
            quote=self.attested.evidence.quote.digest,
            requote=again.evidence.quote.digest,
            tcb_status=tcb.status if tcb else "",
            records_unique=taught.evidence.unique,
            commitment=taught.evidence.commitment,
            least_records=self.node.limits.escrow.min_records,
            seconds=float(taught.evidence.bucket),
        )


def _settled(node: Node, held: Held, ending: Ending) -> dict[str, Any]:
    """Stages 14 and 15, which resume in place behind the last door: pay for the receipt, then hand over what was sealed."""
    attempt = ending.attempt
    if not was_opened("settle", attempt):
        raise Refusal(["door-settle-not-opened"], gate="door-settle", subject=attempt.job)
    receipt = attempt.folder / sealing.RECEIPT
    statement = verify_receipt(receipt.read_bytes(), node.key("receipt").public_key(), job=attempt.job)
    held.enter("settle")
    paid = settle(attempt, receipt, node.attestors, node.chain)
    held.enter("deliver")
    delivered = deliver(attempt, node.orchestrator, statement)
    node.register.finish(held.lease, "done", now=int(time.time()))
    View(attempt.job, attempt.number, attempt.mode).receipt(
        {
            "job": attempt.job,
            "mode": attempt.mode,
            "receipt": delivered["receipt"],
            "sealed result": delivered["sealed"],
            "unique records handed over": str(paid.records),
            "paid, in the vault's token": tokens(paid.amount),
            **{f"credited to the {party}": tokens(part) for party, part in zip(PARTIES, paid.credits, strict=True)},
        }
    )
    return {"job": attempt.job, "attempt": attempt.number, "state": "done", "receipt": delivered["receipt"]}


def _workload_path(blobs: Any, attempt: Attempt, declaration: Declaration) -> Any:
    wanted = declaration.workload
    return scanning.blob_path(blobs, wanted.digest) if wanted.kind == "source" else attempt.folder / scanning.FOLDER


def _manifest_facts(manifest: ManifestEvidence) -> querying.ManifestFacts:
    return querying.ManifestFacts(
        modalities=manifest.scope.modalities,
        body_parts=manifest.scope.body_parts,
        date_from=manifest.scope.date_from,
        date_to=manifest.scope.date_to,
        root=manifest.root,
        count=manifest.count,
        max_records=manifest.max_records,
        min_patients=manifest.min_patients,
        burned_in_checked=manifest.burned_in_checked,
    )


@flow(name="sweep", retries=0, persist_result=False, result_serializer="json", log_prints=False)
def sweep() -> dict[str, Any]:
    """Gives back the leases of the dead, frees the line where that is proven safe, starts what is owed, sends what is due."""
    return swept(_start)


def _start(job: str, key: str) -> None:
    """A run of the deployment, at most one for each state of the job in which it is owed."""
    run_deployment("train/node", parameters={"job": job}, timeout=0, as_subflow=False, idempotency_key=key)
