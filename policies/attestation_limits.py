"""What a site demands of attestation evidence: the JSON behind `rapha attest verify --policy` and the site policy's section
"attestation".

    {"root": "sha256:…",                  digest of the root certificate (DER); absent: Intel's SGX Root CA
     "tee_types": ["sgx"],                "sgx", "tdx"
     "quote_versions": [3],               3 (SGX), 4 and 5 (TDX)
     "measurements": ["<hex>"],           MRENCLAVE (64 hex digits) or MRTD (96) that may run
     "runtime": [["<hex>", …4]],          TDX: RTMR0..3, one list for each allowed set; needed for a TD
     "signers": [{"mrsigner": "<hex>", "isv_prod_id": 0, "min_isv_svn": 1}],
     "sgx_attributes": {"mask": "<32 hex>", "value": "<32 hex>"},
     "tdx_attributes": {"mask": "<16 hex>", "value": "<16 hex>"},
     "configs": ["<hex>"],                configuration ids other than all zero
     "max_zero_padding": 0,               zero bytes allowed after the quote (some TDX services pad); other bytes never
     "tcb_exceptions": [{"status": "SWHardeningNeeded", "advisories": ["INTEL-SA-00615"]}],
     "min_tcb_eval_data_number": 17,
     "sgx_types": [0],                    0 standard, 1 scalable, 2 scalable with integrity
     "allow_dynamic_platform": false, "allow_cached_keys": false, "allow_smt": false,
     "required_pcrs": [0,1,2,3,4,5,6,7],  SHA-256 bank, exactly these
     "pcr_values": {"7": "<64 hex>"},     known good values, beside those of the enrolment record
     "platforms": ["sha256:…"],           digests of the enrolment records of this site's machines
     "max_answer_seconds": 60, "max_clock_skew": 300, "ttl": 3600}

With both measurements and signers, both must hold; with neither, nothing passes. A status that is not UpToDate passes only
under an exception that names it and every advisory of the platform; Revoked never does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from policies.platform import Digest, Hex32, PcrIndex
from rapha.canonical import canonical
from rapha.errors import ConfigurationError

# Digest of the DER of "CN=Intel SGX Root CA", valid to 2049-12-31, as published at certificates.trustedservices.intel.com.
INTEL_ROOT = "sha256:44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

Measurement = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96})$")]
Rtmr = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
Config = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){98,192}$")]
Number = Annotated[int, Field(ge=0)]
Status = Literal[
    "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"
]
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """An enclave's signer, product and lowest security version: none of the three alone names an enclave."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    mrsigner: Hex32
    isv_prod_id: Number
    min_isv_svn: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbException:
    """A status other than UpToDate that the site lives with, and the advisories that it has read."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    status: Status
    advisories: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9-]{1,32}$")], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxAttributes:
    """Every flag but KSS is compared: INIT and MODE64BIT set; DEBUG, PROVISION_KEY and EINITTOKEN_KEY clear (SDM vol. 3D
    35.7)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    mask: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] = "7fffffffffffffff" + "0" * 16
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] = "0500000000000000" + "0" * 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxAttributes:
    """TUD (debug) clear, SEPT_VE_DISABLE set, MIGRATABLE clear; PKS, KL and PERFMON are free (TDX Module ABI, TDATTRIBUTES)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    mask: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = "ffffff3fffffff7f"
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = "0000001000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationLimits:
    """The site's numbers. The defaults let nothing pass: measurements and platforms must be named."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    root: Digest = INTEL_ROOT
    tee_types: tuple[Literal["sgx", "tdx"], ...] = ("sgx",)
    quote_versions: tuple[Literal[3, 4, 5], ...] = (3,)
    measurements: tuple[Measurement, ...] = ()
    runtime: tuple[tuple[Rtmr, Rtmr, Rtmr, Rtmr], ...] = ()
    signers: tuple[Signer, ...] = ()
    sgx_attributes: SgxAttributes = field(default_factory=SgxAttributes)
    tdx_attributes: TdxAttributes = field(default_factory=TdxAttributes)
    configs: tuple[Config, ...] = ()
    max_zero_padding: Annotated[int, Field(ge=0, le=4096)] = 0
    tcb_exceptions: tuple[TcbException, ...] = ()
    min_tcb_eval_data_number: Number = 17
    sgx_types: tuple[Literal[0, 1, 2], ...] = (0,)
    allow_dynamic_platform: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False
    required_pcrs: Annotated[tuple[Annotated[int, Field(ge=0, le=23)], ...], Field(min_length=1)] = (0, 1, 2, 3, 4, 5, 6, 7)
    pcr_values: Mapping[PcrIndex, Hex32] = field(default_factory=dict)
    platforms: tuple[Digest, ...] = ()
    max_answer_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    max_clock_skew: Annotated[int, Field(ge=0, le=3600)] = 300
    ttl: Annotated[int, Field(ge=1, le=8 * 86400)] = 3600

    def exception_for(self, status: str, advisories: tuple[str, ...]) -> bool:
        """Whether one named exception covers this status and all of these advisories."""
        return any(named.status == status and set(advisories) <= set(named.advisories) for named in self.tcb_exceptions)


_ADAPTER: TypeAdapter[AttestationLimits] = TypeAdapter(AttestationLimits)


def read_limits(section: Mapping[str, Any]) -> AttestationLimits:
    """The limits in a JSON object. Raises `ConfigurationError` attestation-policy for an unknown key or a wrong value."""
    try:
        return _ADAPTER.validate_json(canonical(section))
    except ValidationError as error:
        where = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'top level'}: {e['type']}" for e in error.errors(include_input=False)[:8]
        )
        raise ConfigurationError(["attestation-policy"], f"the attestation policy is wrong at {where}") from None
    except ValueError:
        raise ConfigurationError(["attestation-policy"], "the attestation policy is not plain JSON") from None
