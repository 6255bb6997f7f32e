"""What a study costs to analyse, sealed and in the sandbox, beside the same model on clear files in a process of its own."""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.processes import ROOT, running_launcher, running_study
from bench.row import Row, beside
from blocks.instances import SealedWriter
from blocks.models import load_package
from blocks.part10 import read_meta
from blocks.study import SealedFile, StudyReader
from infra.hospital.reading_cohort import Kind, file_bytes, make_study
from infra.netns import NodeNetwork
from rapha.canonical import digest
from tasks.reading.analyse import AnalyseLimits, analyse

PACKAGES = ROOT / "infra" / "models"
SCRIPT = ROOT / "infra" / "workload" / "launcher.py"
KINDS: tuple[tuple[Kind, str], ...] = (("ct", "radiology"), ("sm", "slides"))
# The same networks on the same pixels, read from clear files by pydicom and wsidicom.
CLEAR = {
    "radiology": """
import sys, pathlib, pydicom, torch
from safetensors.torch import load_file
from infra.models.radiology.analyse import Spots, find
network = Spots()
network.load_state_dict(load_file("infra/models/radiology/weights.safetensors"))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    find(network, pydicom.dcmread(path).pixel_array)
""",
    "slides": """
import sys, torch
from safetensors.torch import load_file
from wsidicom import WsiDicom
from infra.models.slides.analyse import Nests, find
network = Nests()
network.load_state_dict(load_file("infra/models/slides/weights.safetensors"))
with WsiDicom.open(sys.argv[1]) as slide:
    levels = [(level.size.height, level.size.width) for level in slide.levels]
    numbers = [level.level for level in slide.levels]
    read = lambda level, box: slide.read_region(box[:2], numbers[level], box[2:], as_array=True)
    find(network, read, levels, 0.001)
""",
}


@dataclass(frozen=True)
class Node:
    """Sockets of a real study reader and launcher, and the key that is sealed to."""

    folder: Path
    private: X25519PrivateKey
    study: Path
    launcher: Path

    def seal(self, files: list[bytes]) -> list[SealedFile]:
        sealed = []
        for raw in files:
            writer = SealedWriter(self.folder / "sealed", self.private.public_key())
            writer.write(raw)
            meta = read_meta(raw)
            sealed.append(SealedFile(writer.finish().path, digest(raw[meta.length if meta else 0 :])))
        return sealed


def rows() -> list[Row]:
    """One row a model, on its sample study."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-bench-")))
        (folder / "sealed").mkdir()
        private, key = X25519PrivateKey.generate(), folder / "key.pem"
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key.chmod(0o600)
        network = stack.enter_context(NodeNetwork.create())
        study = stack.enter_context(running_study(folder, key, folder / "sealed"))
        launcher = stack.enter_context(running_launcher(folder, network))
        return [_row(Node(folder, private, study, launcher), kind, name) for kind, name in KINDS]


def _row(node: Node, kind: Kind, name: str) -> Row:
    files = [file_bytes(one) for one in make_study(kind, 1, 2)]
    sealed, clear = node.seal(files), node.folder / kind
    clear.mkdir()
    for number, raw in enumerate(files):
        (clear / f"{number}.dcm").write_bytes(raw)
    package = load_package(PACKAGES / name)
    limits = AnalyseLimits(script=SCRIPT, script_digest=digest(SCRIPT.read_bytes()))

    def ours() -> None:
        with StudyReader(node.study) as reader:
            facts = [one.facts for one in reader.open(sealed)]
            if not analyse(reader, facts, node.launcher, [package], limits, lambda *_: None).findings:
                raise RuntimeError("nothing was found on a study with lesions")

    def peer() -> None:
        subprocess.run([sys.executable, "-c", CLEAR[name], str(clear)], cwd=ROOT, check=True)

    said = f"{sum(map(len, files)) / 1e6:.1f} MB; goal: under 5000 ms on 2 cores"
    return beside(f"{name} model, sample study", ours, peer, peer_name="the model on clear files", runs=3, note=said)
