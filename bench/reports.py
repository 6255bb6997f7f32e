"""What a report's template validation costs in the study reader's warm process, beside the validator's own program."""

from bench.processes import ROOT
from bench.row import Row, beside
from blocks import validators
from blocks.models import load_package
from blocks.validators import TEMPLATE
from infra.hospital.reading_cohort import make_study
from infra.validator.warm import WarmValidator
from policies.findings import Finding
from tasks.reading.report import Analysed, ReportFacts, build


def rows() -> list[Row]:
    report = _report()
    warm = WarmValidator(1)
    try:
        if warm.check(TEMPLATE, report) != validators.check(TEMPLATE, report) or not warm.pids():
            raise RuntimeError("the warm process does not say what the program says")

        def ours() -> None:
            warm.check(TEMPLATE, report)

        def peer() -> None:
            validators.check(TEMPLATE, report)

        said = "a CT report, one finding; both with Saxon"
        return [beside("template validation, warm", ours, peer, peer_name="DicomSRValidator", runs=5, note=said)]
    finally:
        warm.close()


def _report() -> bytes:
    package, sources = load_package(ROOT / "infra" / "models" / "radiology"), make_study("ct", 3, 1)
    points = ((40.0, 50.0), (46.0, 50.0))
    found = Finding(index=0, frame=1, kind="lesion", confidence=0.93, shape="circle", points=points)
    count = len(sources)
    analysed = Analysed(model=package.model, digest=package.digest, read=tuple(range(count)), findings=(found,))
    contents = tuple(f"sha256:{number:064x}" for number in range(count))
    return build(sources, [analysed], ReportFacts(at=1_790_000_000, contents=contents, device="bench"))
