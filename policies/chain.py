"""A certificate chain as text that has one form only: what is not covered by a signature must not be free to vary. Pure."""

from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from rapha.canonical import digest

MAX_CHAIN = 4
_TAILS = (b"", b"\n", b"\0", b"\n\0")


def read_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM text, leaf first, each signed by the next, the text exactly what they encode to.

    Whether the last one is to be trusted is the caller's to compare. Raises `ValueError`.
    """
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        again = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates).rstrip(b"\n")
        for issued, issuer in pairwise(certificates):
            issued.verify_directly_issued_by(issuer)
    except (x509.InvalidVersion, InvalidSignature, UnsupportedAlgorithm, TypeError):
        raise ValueError("not a chain of certificates") from None
    if not 1 <= len(certificates) <= MAX_CHAIN or not pem.startswith(again) or pem[len(again) :] not in _TAILS:
        raise ValueError("not a plain certificate chain")
    return certificates


def root_digest(chain: tuple[x509.Certificate, ...]) -> str:
    """Digest of the last certificate's DER."""
    return digest(chain[-1].public_bytes(Encoding.DER))
