"""A node's own commands, by name: the module that has them, and one line of help, read before anything is imported.

The engine, the chain's client and the archive's take seconds to import; only the module of the command that is run is imported.
"""

from rapha.console.announce import JOB


def announce() -> dict[str, tuple[str, str]]:
    """First word of a command -> (module with a `register`, help); the help is the command's own, and a test holds them equal."""
    return {name: (f"flows.console.{module}", text) for module, commands in COMMANDS.items() for name, text in commands.items()}


COMMANDS = {
    "attest": {
        "attest": "Attestation evidence: verify it offline; import collateral.",
        "node": "This node: its folder and keys, and its machine's identity.",
    },
    "audit": {"audit": "The audit trail: search it, count, export, and remove what is past its time."},
    "demo": {"demo": "The whole run on a made-up hospital: every gate's verdict, the receipt and who was credited what."},
    "doctor": {
        "doctor": "Look at every setting, key, peer, the clock, the disk and the isolation: one line each, "
        "a code for each thing missing."
    },
    "guard": {"guard": "Judge a trainer's output folder against its job and write what could leave."},
    "job": {"job": JOB},
    "letters": {"dead-letters": "What a peer failed for good, or what crashed too often: jobs and studies."},
    "manifest": {"manifest": "The hospital's dataset manifest: what was approved, and its records."},
    "notify": {"notify": "Who is still to be told of a result; acknowledge a critical finding."},
    "pacs": {
        "minimise": "Print what may be kept of DICOM JSON: allow-listed attributes, and pseudonyms for patient, study, "
        "accession and record.",
        "pacs": "The archive, by hand. These commands show identifiers: for the hospital's side alone.",
    },
    "queue": {"queue": "What waits; move a study up or down."},
    "read": {
        "read": "The reading flow for one study now, in this process: retrieved, analysed, its report stored and proven stored."
    },
    "report": {"report": "The checks that a report must pass before it is stored."},
    "scan": {"scan": "Scan an OCI image layout, an image archive or a source folder for anything that could reach a network."},
    "serve": {
        "serve": "The node: engine, worker, webhook, keeper, reader, launcher and attester as one supervised process group.",
        "deploy": "Registers the work pool and the deployments of prefect.yaml on the engine at PREFECT_API_URL.",
    },
    "state": {
        "health": "The health of every component: up, or the code of what is wrong. Exit 4 when one is down, 2 where "
        "a setting is wrong.",
        "stats": "Counts of jobs by state, of verdicts by gate and outcome, of codes, and how long delivered jobs took; "
        "of studies by state, stage and priority, of notices, and how long the oldest has waited.",
    },
}
