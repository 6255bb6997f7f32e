"""An offline bundle of Intel's PCS documents: is it signed under the pinned root, whole, and fresh? Each quote checks all of
it again."""

import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from blocks.dcap import MAX_COLLATERAL, read_bundle
from policies.attestation_limits import INTEL_ROOT
from policies.chain import read_chain, root_digest
from rapha.canonical import digest
from rapha.errors import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """fmspc: hex; number: the lower of the two evaluation data numbers; times in seconds since the epoch."""

    fmspc: str
    number: int
    issued_at: int
    expires_at: int


def read_collateral(raw: bytes, root: bytes | None, at: int | None) -> Bundle:
    """The bundle in `raw`, verified under `root` (DER; None: Intel's), and at the time `at` if one is given.

    Raises `Refusal` collateral-too-large, collateral-malformed, collateral-root, collateral-signature, collateral-crl or
    collateral-stale.
    """
    if len(raw) > MAX_COLLATERAL:
        raise _refused("collateral-too-large", "the bundle is larger than any real one")
    pinned = INTEL_ROOT if root is None else digest(root)
    try:
        bundle = read_bundle(raw)
        info, identity = (_signed(bundle, name, pinned) for name in ("tcb_info", "qe_identity"))
        spans = [_span(info), _span(identity), *_revocation_spans(bundle, pinned)]
        found = Bundle(
            fmspc=info["fmspc"].upper(),
            number=min(info["tcbEvaluationDataNumber"], identity["tcbEvaluationDataNumber"]),
            issued_at=max(start for start, _ in spans),
            expires_at=min(end for _, end in spans),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise _refused("collateral-malformed", "the bundle is not the PCS documents that it should be") from None
    if at is not None and not found.issued_at <= at < found.expires_at:
        raise _refused("collateral-stale", "the bundle is expired or not yet valid")
    return found


def _signed(bundle: dict[str, str], name: str, pinned: str) -> dict[str, Any]:
    """A document whose exact text its issuer signed (PCS API: ECDSA over the UTF-8 text, raw r and s)."""
    text, signature = bundle[name].encode(), bytes.fromhex(bundle[f"{name}_signature"])
    chain = _chain(bundle[f"{name}_issuer_chain"], pinned)
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 64:
        raise _refused("collateral-signature", f"the signature of {name} is of another kind")
    try:
        key.verify(encode_dss_signature(r, s), text, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise _refused("collateral-signature", f"the signature of {name} does not verify") from None
    document: dict[str, Any] = json.loads(text)
    return document


def _chain(pem: str, pinned: str) -> tuple[x509.Certificate, ...]:
    """Leaf first; each issued by the next, the last one is the pinned root."""
    chain = read_chain(pem.encode())
    if root_digest(chain) != pinned:
        raise _refused("collateral-root", "the bundle's certificates do not lead to the pinned root")
    return chain


def _revocation_spans(bundle: dict[str, str], pinned: str) -> list[tuple[int, int]]:
    chain = _chain(bundle["pck_crl_issuer_chain"], pinned)
    spans = []
    for name, issuer in (("pck_crl", chain[0]), ("root_ca_crl", chain[-1])):
        found = x509.load_der_x509_crl(bytes.fromhex(bundle[name]))
        key = issuer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not found.is_signature_valid(key):
            raise _refused("collateral-crl", f"the revocation list {name} is not by the certificate's issuer")
        spans.append((_seconds(found.last_update_utc), _seconds(found.next_update_utc)))
    return spans


def _span(document: dict[str, Any]) -> tuple[int, int]:
    return _seconds(dt.datetime.fromisoformat(document["issueDate"])), _seconds(dt.datetime.fromisoformat(document["nextUpdate"]))


def _seconds(moment: dt.datetime | None) -> int:
    if moment is None or moment.tzinfo is None:
        raise ValueError("no time")
    return int(moment.timestamp())


def _refused(code: str, message: str) -> Refusal:
    return Refusal([code], message, gate="attestation")
