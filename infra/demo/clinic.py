"""The reading half of the demo's world: its papers, its processes, and the modality that sends new studies to the archive."""

import json
import os
import time
from pathlib import Path

from pydicom.dataset import Dataset

from blocks.archive import Archive
from blocks.dimse.services import ToStore
from blocks.models import site_list
from blocks.profile import load_profile
from infra import serve
from infra.demo.authority import mail_certificate
from infra.demo.layout import Layout
from infra.demo.papers import Ports
from infra.hospital.reading_cohort import file_bytes, make_study
from infra.supervisor import Member
from tasks.shared.beginning import write_study_key

MODELS = Path(__file__).resolve().parents[1] / "models"
TITLE, ARCHIVE = "RAPHA", "HOSPITAL"
PERSONS = ("on-call@st-elsewhere.example", "head-of-radiology@st-elsewhere.example")
STUDIES = (("ct", 23, 1), ("dx", 22, 0))  # kind, seed, lesions
PROFILE = """\
# The demo's one archive: asked over DIMSE and DICOMweb, and it sends to the node's receiver (C-MOVE).
pacs_endpoints:
  primary:
    host: localhost
    port: {dimse}
    ae_title: {archive}
    calling_ae_title: {title}
    dicomweb_url: http://127.0.0.1:{web}/dicom-web
    retrieve: C-MOVE
    store: C-STORE
    move_destination: {title}
workflow:
  polling_interval_seconds: 300
  quiet_seconds: 0
  max_concurrent_studies: 4
notifications:
  escalate_after_seconds: 900
  email:
    enabled: true
    smtp_server: localhost
    smtp_port: {mail}
    from_address: rapha@st-elsewhere.example
    ca_bundle: {bundle}
    needs_outside_line: false
  recipients:
    radiology: [{persons}]
"""


def papers(layout: Layout, sockets: Path, ports: Ports) -> dict[str, str]:
    """Profile, list of models, keys and certificate, made where they are missing; the settings that name them."""
    if not (layout.node_keys / "study.pem").exists():
        write_study_key(layout.node_keys)
    mail_certificate(layout.private / "mail")
    known = {"dimse": ports.dimse, "web": ports.archive, "mail": ports.mail, "archive": ARCHIVE, "title": TITLE}
    bundle, persons = layout.private / "mail" / "ca.pem", ", ".join(PERSONS)
    (layout.root / "profile.yaml").write_text(PROFILE.format(**known, bundle=bundle, persons=persons))
    listed = site_list([MODELS / "radiology", MODELS / "slides"])
    (layout.root / "models.json").write_text(json.dumps(listed, indent=1) + "\n")
    return {
        "RAPHA_PROFILE_PATH": str(layout.root / "profile.yaml"),
        "RAPHA_MODELS_PATH": str(layout.root / "models.json"),
        "RAPHA_REGISTER_KEY_BASE64": layout.secret("register"),
        "RAPHA_RECEIVER_KEY_BASE64": layout.secret("receiver"),
        "RAPHA_RECEIVER_BIND": f"127.0.0.1:{ports.receiver}",
        "RAPHA_RECEIVER_SOCKET": str(sockets / "receiver.sock"),
        "RAPHA_RECEIVER_STORE": str(layout.root / "received"),
        "RAPHA_STUDY_SOCKET": str(sockets / "study.sock"),
        "RAPHA_STUDY_STORE": str(layout.root / "fetched"),
        "RAPHA_MODEL_LAUNCHER_SOCKET": str(sockets / "models.sock"),
    }


def mail(layout: Layout, ports: Ports) -> Member:
    """The hospital's mail server."""
    folder = layout.private / "mail"
    argv = serve.python("infra.mail", "--port", str(ports.mail), "--cert", str(folder / "mail.pem"))
    argv += ["--key", str(folder / "mail.key"), "--box", str(layout.root / "mail")]
    return Member("mail", argv, serve.base_environment(os.environ))


def archive_options(layout: Layout, ports: Ports) -> list[str]:
    """What the demo's archive needs to speak DIMSE, and to keep what it is sent apart from the cohort."""
    wanted = ["--dimse-port", str(ports.dimse), "--ae", ARCHIVE, "--incoming", str(layout.root / "pacs")]
    return [*wanted, "--destination", f"{TITLE}=127.0.0.1:{ports.receiver}"]


def new_studies() -> list[list[Dataset]]:
    """The made-up studies of today: one with a lesion, one without."""
    made = []
    for kind, seed, planted in STUDIES:
        study = make_study(kind, seed, planted)  # type: ignore[arg-type]
        for dataset in study:
            dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
        made.append(study)
    return made


def send(layout: Layout, environment: dict[str, str], study: list[Dataset]) -> None:
    """As a modality does: C-STORE of every instance."""
    folder = layout.root / "modality"
    folder.mkdir(exist_ok=True)
    objects = []
    for dataset in study:
        path = folder / f"{len(list(folder.iterdir())):04d}.dcm"
        path.write_bytes(file_bytes(dataset))
        meta = dataset.file_meta
        syntax = str(meta.TransferSyntaxUID)
        objects.append(ToStore(path, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), syntax))
    endpoint = load_profile(Path(environment["RAPHA_PROFILE_PATH"]), environment).endpoints["primary"]
    Archive(endpoint).store(str(study[0].StudyInstanceUID), objects)
