"""The attester's verbs, served to processes of this user through `infra.daemon`."""

import base64
import binascii
import threading
from typing import Any

from infra.attester.tee import Tee
from infra.attester.tpm import Tpm
from policies.quote import tpm_nonce
from rapha.errors import Refusal

PCRS = list(range(8))


class Attester:
    """One connection. The TPM is shared: one command at a time."""

    def __init__(self, tpm: Tpm, tee: Tee, lock: threading.Lock, pcrs: list[int] | None = None) -> None:
        self._tpm, self._tee, self._lock, self._pcrs = tpm, tee, lock, pcrs or PCRS

    def do_evidence(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A DCAP quote over `report_data` (128 hex digits), and a TPM quote over that quote's digest."""
        report_data = _report_data(message)
        with self._lock:
            quote = self._tee.quote(report_data)
            found = self._tpm.quote(tpm_nonce(quote), self._pcrs)
            key = self._tpm.identity().ak_pem
        return {
            "quote": _text(quote),
            "attest": _text(found.attest),
            "signature": _text(found.signature),
            "pcrs": {str(index): value.hex() for index, value in found.pcrs.items()},
            "ak_pem": key,
        }

    def do_identity(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The machine's keys and its PCK chain, for enrolment."""
        with self._lock:
            found = self._tpm.identity()
            quote = self._tee.quote(bytes(64))
        return {
            "kind": self._tpm.kind,
            "ak_pem": found.ak_pem,
            "ak_name": found.ak_name.hex(),
            "ak_qualified_name": found.ak_qualified_name.hex(),
            "ak_public": _text(found.ak_public),
            "ek_public": _text(found.ek_public),
            "ek_certificate": _text(found.ek_certificate),
            "pcrs": {str(index): value.hex() for index, value in found.pcrs.items() if index in self._pcrs},
            "quote": _text(quote),
        }

    def do_activate(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Opens a credential that was made for this TPM's EK and AK."""
        try:
            credential = base64.b64decode(message["credential"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise Refusal(["attester-bad-request"], "no credential") from None
        with self._lock:
            return {"secret": _text(self._tpm.activate(credential))}

    def closed(self) -> None:
        """Nothing is held for a client."""


def _report_data(message: dict[str, Any]) -> bytes:
    text = message.get("report_data")
    if not isinstance(text, str) or len(text) != 128:
        raise Refusal(["attester-bad-request"], "report data is 128 hex digits")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Refusal(["attester-bad-request"], "report data is 128 hex digits") from None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
