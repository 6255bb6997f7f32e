"""The enrolment record of one machine (`platform.json`): which TPM key and which CPU this node is. Never taken from evidence.

The site's policy lists the record's digest (`AttestationLimits.platforms`); a machine that is not listed is not attested.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rapha.canonical import canonical, digest_of, is_digest, parse
from rapha.errors import Refusal

MAX_PLATFORM = 64 * 1024


def _whole_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError("not a sha256 digest")
    return text


Digest = Annotated[str, AfterValidator(_whole_digest)]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PcrIndex = Annotated[str, Field(pattern=r"^([0-9]|1[0-9]|2[0-3])$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Tpm(_Strict):
    """ak_pem: SubjectPublicKeyInfo; ak_name: TPM name (nameAlg and digest); ak_qualified_name: what a quote's signer field holds;
    ek_certificate: digest of the DER; bound: how the key was tied to that certificate at enrolment; pcrs: SHA-256 bank."""

    ak_pem: Annotated[str, Field(max_length=2048)]
    ak_name: Annotated[str, Field(pattern=r"^000b[0-9a-f]{64}$")]
    ak_qualified_name: Annotated[str, Field(pattern=r"^000b[0-9a-f]{64}$")]
    ek_certificate: Digest
    bound: Literal["activate-credential", "none"]
    pcrs: dict[PcrIndex, Hex32] = Field(min_length=1, max_length=24)


class Tee(_Strict):
    """ppid: digest of the PPID's 16 bytes; fmspc: hex, as in the PCK certificate."""

    ppid: Digest
    fmspc: Annotated[str, Field(pattern=r"^[0-9A-F]{12}$")]


class Platform(_Strict):
    version: Literal[1]
    machine: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    mode: Literal["development", "production"]
    enrolled_at: Annotated[int, Field(gt=0)]
    expires_at: Annotated[int, Field(gt=0)]
    tpm: Tpm
    tee: Tee

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical record: its name in the site's policy."""
        return digest_of(self.model_dump(mode="json"))

    @property
    def ak_digest(self) -> str:
        """What the DCAP quote's report data binds of the TPM: digest of the attestation key's TPM name."""
        return digest_of({"tpm_ak": self.tpm.ak_name})


def read_platform(raw: bytes) -> Platform:
    """The record in `raw`. Raises `Refusal` platform-malformed or one `json-…` code."""
    document = parse(raw, limit=MAX_PLATFORM, what="enrolment record")
    try:
        return Platform.model_validate_json(canonical(document))
    except (ValidationError, ValueError):
        raise Refusal(["platform-malformed"], "the enrolment record has a wrong or unknown field", gate="attestation") from None
