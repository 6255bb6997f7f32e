"""From a TPM's evidence and an enrolment record to the facts that the attestation gate judges. Pure.

The key that verifies is the record's, whatever key the evidence brings along.
"""

from collections.abc import Mapping

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from policies.attestation_evidence import PlatformFacts, TpmFacts
from policies.platform import Platform
from policies.quote import QuoteFormatError, tpm_nonce
from policies.tpm import Attest, TpmFormatError, pcr_digest, read_attest, verify_signature

_NOTHING = Attest(signer="", extra=b"", clock=-1, reset_count=-1, restart_count=-1, safe=False, selection=(), digest=b"")


def platform_facts(platform: Platform) -> PlatformFacts:
    """The record's side of the comparison."""
    return PlatformFacts(
        digest=platform.digest,
        mode=platform.mode,
        expires_at=platform.expires_at,
        ak=platform.ak_digest,
        signer=platform.tpm.ak_qualified_name,
        bound=platform.tpm.bound == "activate-credential",
        ppid=platform.tee.ppid,
        fmspc=platform.tee.fmspc,
        pcrs=tuple(sorted((int(index), value) for index, value in platform.tpm.pcrs.items())),
    )


def tpm_facts(
    attest: bytes, signature: bytes, pcrs: Mapping[int, bytes], *, quote: bytes, platform: Platform, claimed_ak: str | None = None
) -> TpmFacts:
    """Facts about a TPM quote over `pcrs` that should be about the DCAP `quote`. What is wrong becomes `fault`, never an
    exception."""
    fault, read = "", _NOTHING
    try:
        read = read_attest(attest)
        fault = "" if verify_signature(attest, signature, platform.tpm.ak_pem) else "tpm-signature"
    except TpmFormatError as error:
        fault = str(error)
    try:
        expected = tpm_nonce(quote).hex()
    except QuoteFormatError:
        expected = ""
    return TpmFacts(
        fault=fault,
        ak=platform.ak_digest if claimed_ak is None or _same_key(claimed_ak, platform.tpm.ak_pem) else "",
        signer=read.signer,
        extra=read.extra.hex(),
        expected=expected,
        selection=read.selection,
        pcrs=tuple((index, pcrs[index].hex()) for index in sorted(pcrs)),
        pcrs_hash=bool(pcrs) and pcr_digest(pcrs) == read.digest,
        clock=read.clock,
        reset_count=read.reset_count,
        restart_count=read.restart_count,
        safe=read.safe,
    )


def _same_key(one: str, other: str) -> bool:
    try:
        keys = [load_pem_public_key(pem.encode()) for pem in (one, other)]
    except ValueError:
        return False
    first, second = (key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys)
    return first == second
