"""What an attempt leaves for the next one: its sealed instances, the models' results, the digests of the report that was checked.

As a document for `blocks.kept`. It is taken up only by an attempt at the same opening of the study, and only as far as it proves
equal: the files are hashed again by the study reader, the archive lists the same instances, the site lists the same models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.models import ModelPackage
from policies.applicability import InstanceFacts
from policies.findings import ImageShape, is_critical, read_listed, to_json
from rapha.errors import Refusal
from tasks.reading.analyse import Analysis, ModelResult
from tasks.reading.retrieve import Kept


@dataclass(frozen=True)
class Left:
    """instances: in the order of their indexes; analysis: as `to_document` wrote it, None where there was none yet; report: the
    digests of its objects that passed their checks, of the report's own last, () for none."""

    instances: tuple[Kept, ...]
    analysis: dict[str, Any] | None
    report: tuple[str, ...]


def to_document(
    instances: Sequence[Kept], analysis: Analysis | None, models: Sequence[ModelPackage], report: Sequence[str]
) -> dict[str, Any]:
    """Without the files' places, which the note has itself."""
    return {
        "instances": [[one.sop_uid, one.sha256] for one in instances],
        "analysis": _analysis(analysis, models) if analysis else None,
        "report": list(report),
    }


def left(document: Mapping[str, Any]) -> Left:
    """The note, read again. It is sealed: what it holds, we wrote."""
    instances = [
        Kept(uid, Path(file), sha256)
        for (uid, sha256), file in zip(document["instances"], document["files"], strict=False)  # ours are files beyond them
    ]
    return Left(tuple(instances), document["analysis"], tuple(document["report"]))


def analysis_of(kept: Mapping[str, Any] | None, models: Sequence[ModelPackage], facts: Sequence[InstanceFacts]) -> Analysis:
    """The models' results again, held to the models' declarations once more.

    Raises `Refusal` kept-no-analysis, kept-other-models, findings-….
    """
    if kept is None:
        raise Refusal(["kept-no-analysis"], "the last attempt left no results of models", gate="resume")
    if kept["models"] != sorted(package.digest for package in models):
        raise Refusal(["kept-other-models"], "the site lists other models than those that analysed", gate="resume")
    known = {package.digest: package for package in models}
    shapes = [ImageShape(one.frames, one.rows, one.columns) for one in facts]
    results = tuple(_result(one, known[one["digest"]], shapes) for one in kept["results"])
    analysed = frozenset[int]().union(*(result.read for result in results))
    return Analysis(analysed, {int(index): reason for index, reason in kept["left_out"].items()}, results)


def _analysis(analysis: Analysis, models: Sequence[ModelPackage]) -> dict[str, Any]:
    return {
        "models": sorted(package.digest for package in models),
        "left_out": {str(index): reason for index, reason in analysis.left_out.items()},
        "results": [
            {
                "digest": one.digest,
                "read": sorted(one.read),
                "left_out": {str(index): reason for index, reason in one.left_out.items()},
                "findings": [to_json(one.model, finding) for finding in one.findings],
                "seconds": one.seconds,
            }
            for one in analysis.results
        ],
    }


def _result(kept: Mapping[str, Any], package: ModelPackage, shapes: Sequence[ImageShape]) -> ModelResult:
    findings = read_listed(kept["findings"], package.model, shapes)
    return ModelResult(
        model=package.model,
        digest=package.digest,
        read=frozenset(kept["read"]),
        left_out={int(index): reason for index, reason in kept["left_out"].items()},
        findings=findings,
        seconds=int(kept["seconds"]),
        critical=sum(is_critical(package.model, one) for one in findings),
    )
