"""Enrolment: which TPM key and which CPU are this machine's, found out once by a person who stands at it.

The attestation key is tied to the endorsement key's certificate by a credential that only the TPM holding both can open
(TPM 2.0 Library, Part 1, 24); that certificate must come from an authority that the enroller trusts. The record that comes out is
listed by its digest in the site's policy; from then on nothing about the machine's identity is taken from evidence.
"""

import hmac
import secrets
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from blocks.attester import Attester, Identity
from blocks.credential import make_credential
from blocks.dcap import platform_of
from policies.gate import Mode
from policies.platform import Platform, Tee, Tpm
from policies.tpm import TpmFormatError
from policies.tpm_key import check_key, holds_modulus, object_name, qualified_name
from rapha.canonical import digest
from rapha.errors import PeerError, Refusal


def enrol(
    attester: Attester, *, machine: str, mode: Mode, at: int, ek_roots: Sequence[x509.Certificate] = (), days: int = 365
) -> Platform:
    """The enrolment record of the machine behind `attester`.

    ek_roots: certificates of the TPM makers' authorities (an intermediate may be given in place of its root); required in
    production.
    Raises `Refusal` enrol-…; a software TPM is enrolled unbound, in development only.
    """
    found = attester.identity()
    real = found.kind != "software"
    if mode == "production" and found.kind != "device":
        raise Refusal(["enrol-development-tpm"], "a production machine is enrolled with its own TPM", gate="enrol")
    if mode == "production" or ek_roots:
        _check_certificate(found, ek_roots, at)
    if real:
        _check_bound(attester, found)
    try:
        ppid, fmspc = platform_of(found.quote)
    except ValueError:
        raise PeerError("enrol-no-quote", "the machine's DCAP quote carries no PCK certificate", peer="attester") from None
    tpm = Tpm(
        ak_pem=found.ak_pem,
        ak_name=found.ak_name,
        ak_qualified_name=found.ak_qualified_name,
        ek_certificate=digest(found.ek_certificate),
        bound="activate-credential" if real else "none",
        pcrs={str(index): value.hex() for index, value in found.pcrs.items()},
    )
    return Platform(
        version=1,
        machine=machine,
        mode=mode,
        enrolled_at=at,
        expires_at=at + days * 86400,
        tpm=tpm,
        tee=Tee(ppid=ppid, fmspc=fmspc),
    )


def _check_bound(attester: Attester, found: Identity) -> None:
    """The TPM that has the AK has the EK, and the EK is the one in the certificate."""
    _check_key(found)
    secret = secrets.token_bytes(32)
    opened = attester.activate(make_credential(found.ek_public, found.ak_name, secret))
    if not hmac.compare_digest(opened, secret):
        raise Refusal(["enrol-not-bound"], "the attestation key is not in the TPM of this endorsement key", gate="enrol")
    if not holds_modulus(found.ek_public, _modulus(found.ek_certificate)):
        raise Refusal(["enrol-ek-other"], "the endorsement certificate is for another key than the TPM's", gate="enrol")


def _check_key(found: Identity) -> None:
    """The key signs nothing but what its TPM made, and its names follow from the public areas."""
    try:
        check_key(found.ak_public, found.ak_pem)
        names = object_name(found.ak_public).hex(), qualified_name(found.ek_public, found.ak_public).hex()
    except TpmFormatError as error:
        raise Refusal(
            [f"enrol-{error}"], "the attestation key is not a restricted signing key of this TPM", gate="enrol"
        ) from None
    if names != (found.ak_name, found.ak_qualified_name):
        raise Refusal(["enrol-names"], "the attestation key's names do not follow from its public area", gate="enrol")


def _modulus(certificate: bytes) -> bytes:
    numbers = _certificate(certificate).public_key().public_numbers()  # type: ignore[union-attr]
    modulus: int = getattr(numbers, "n", 0)
    if modulus.bit_length() < 2048:
        raise Refusal(["enrol-ek-kind"], "the endorsement key is not RSA of at least 2048 bits", gate="enrol")
    return modulus.to_bytes((modulus.bit_length() + 7) // 8, "big")


def _check_certificate(found: Identity, roots: Sequence[x509.Certificate], at: int) -> None:
    certificate = _certificate(found.ek_certificate)
    if not certificate.not_valid_before_utc.timestamp() <= at < certificate.not_valid_after_utc.timestamp():
        raise Refusal(["enrol-ek-expired"], "the endorsement certificate is not valid at this time", gate="enrol")
    if not any(_issued(certificate, root) for root in roots):
        raise Refusal(["enrol-ek-untrusted"], "the endorsement certificate is not by a trusted TPM maker", gate="enrol")


def _issued(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise Refusal(["enrol-ek-malformed"], "the endorsement certificate cannot be read", gate="enrol") from None
