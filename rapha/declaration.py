"""The job declaration: what an AI team asks of a hospital's node, strict to the last field.

The file is JSON: the fields below and `"signatures": [{"keyid", "role": "ai-team", "sig"}]` (see `rapha.signing`). The job's id
is the digest of the canonical form without the signatures, so one declaration is one job, whoever sends it, however often.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rapha.canonical import canonical, digest, is_digest, parse
from rapha.errors import Refusal
from rapha.signing import document_digest, unsigned

MAX_DECLARATION = 256 * 1024


def _whole_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError("not a sha256 digest")
    return text


def _entry_point(text: str) -> str:
    path = PurePosixPath(text)
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,253}", text) is not None
    if not plain or ".." in path.parts or path.suffix != ".py" or str(path) != text:
        raise ValueError("not a plain relative path of a Python file")
    return text


Digest = Annotated[str, AfterValidator(_whole_digest)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]
Date = Annotated[str, Field(pattern=r"^[0-9]{8}$")]
CodeString = Annotated[str, Field(pattern=r"^[A-Z0-9 _]{1,16}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,128}$")]
MicroUsdc = Annotated[int, Field(gt=0, le=10**12)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants", allow_inf_nan=False)


class Workload(_Strict):
    """What runs. `digest` is of the artefact's bytes (source bundle: a tar; OCI: the image manifest)."""

    kind: Literal["source", "oci"]
    digest: Digest
    signature: Digest  # digest of the JSON document that signs `digest`, fetched beside it
    entry_point: Annotated[str, AfterValidator(_entry_point)]
    base_weights: Digest | None = None


class Dataset(_Strict):
    """The cohort intent: it may narrow the hospital's manifest, never widen it."""

    cohort: Name
    project: Name
    purpose: Name
    modalities: tuple[CodeString, ...] = Field(min_length=1, max_length=8)
    body_parts: tuple[CodeString, ...] = Field(min_length=1, max_length=8)
    date_from: Date
    date_to: Date


class Tensor(_Strict):
    name: TensorName
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...] = Field(max_length=8)
    dtype: Literal["F32", "F16", "BF16"]


class Metric(_Strict):
    """A named number that may leave: within [minimum, maximum], rounded to `digits` significant digits."""

    name: Name
    minimum: float
    maximum: float
    digits: Annotated[int, Field(ge=1, le=6)]

    @model_validator(mode="after")
    def _ordered(self) -> "Metric":
        if not self.minimum < self.maximum:
            raise ValueError("minimum must be under maximum")
        return self


class Outputs(_Strict):
    """Everything that may leave; anything else refuses the job."""

    tensors: tuple[Tensor, ...] = Field(min_length=1, max_length=4096)
    metrics: tuple[Metric, ...] = Field(max_length=64)

    @model_validator(mode="after")
    def _unique(self) -> "Outputs":
        for names in ([t.name for t in self.tensors], [m.name for m in self.metrics]):
            if len(set(names)) != len(names):
                raise ValueError("a name occurs twice")
        return self


class Budget(_Strict):
    """Prices in millionths of the token (USDC has 6 decimals). `escrow` is the deposit's id in the vault (bytes32)."""

    chain_id: Annotated[int, Field(gt=0)]
    vault: Address
    token: Address
    escrow: Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]
    price_per_record: MicroUsdc
    max_records: Annotated[int, Field(gt=0, le=10**7)]


class Run(_Strict):
    """What the trainer is told, all of it: whole numbers only."""

    max_seconds: Annotated[int, Field(gt=0, le=7 * 86400)]
    epochs: Annotated[int, Field(gt=0, le=10_000)]
    batch_size: Annotated[int, Field(gt=0, le=4096)]
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class Declaration(_Strict):
    version: Literal[1]
    node: Name
    owner: Name
    client_nonce: Hex32
    workload: Workload
    dataset: Dataset
    outputs: Outputs
    budget: Budget
    run: Run
    deadline: Annotated[int, Field(gt=0)]  # seconds since the epoch
    recipient: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]  # X25519 public key, base64

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = parse(canonical(self.model_dump(mode="json")), what="declaration")
        return value


def read_declaration(raw: bytes) -> tuple[Declaration, dict[str, Any], str]:
    """(declaration, the signed document, job id) from the bytes of a declaration file.

    Raises `Refusal`: one `json-…` code, or `declaration-…` codes that name each wrong field by its path.
    """
    try:
        document = parse(raw, limit=MAX_DECLARATION, what="job declaration")
    except Refusal as refusal:
        raise Refusal(refusal.codes, refusal.message, gate="intake", side="job", subject=digest(raw)) from None
    if not isinstance(document, dict):
        raise Refusal(["declaration-not-an-object"], "the job declaration is not a JSON object", gate="intake", side="job")
    try:
        declaration = Declaration.model_validate_json(canonical(unsigned(document)))
    except ValidationError as error:
        raise _invalid(error) from None
    return declaration, document, document_digest(document)


def _invalid(error: ValidationError) -> Refusal:
    codes, said = set(), []
    for item in error.errors(include_input=False, include_url=False):
        where = (
            ".".join(str(part) for part in item["loc"])
            if item["type"] != "extra_forbidden"
            else ".".join(map(str, item["loc"][:-1]))
        )
        codes.add(
            {"extra_forbidden": "declaration-unknown-field", "missing": "declaration-missing-field"}.get(
                item["type"], "declaration-bad-value"
            )
        )
        said.append(f"{where or 'top level'}: {item['type']}")
    return Refusal(sorted(codes), "the job declaration is refused: " + "; ".join(said[:8]), gate="intake", side="job")
