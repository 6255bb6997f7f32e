"""The AI team's side of the webhook: one signed POST."""

import base64
import json
import secrets
import time
import urllib.error
import urllib.request

from infra.demo.layout import TEAM_KEY
from infra.webhook.signature import sign
from rapha.errors import PeerError


def submit(url: str, declaration: bytes, secret_base64: str) -> str:
    """Posts the declaration and returns the job's id. Raises `PeerError` with the webhook's code."""
    stamp, nonce = str(int(time.time())), secrets.token_hex(16)
    headers = {
        "Content-Type": "application/json",
        "Rapha-Key-Id": TEAM_KEY,
        "Rapha-Timestamp": stamp,
        "Rapha-Nonce": nonce,
        "Rapha-Signature": sign(base64.b64decode(secret_base64), stamp, nonce, declaration),
    }
    try:
        with urllib.request.urlopen(urllib.request.Request(url, declaration, headers), timeout=30) as answer:
            return str(json.loads(answer.read())["job"])
    except urllib.error.HTTPError as error:
        codes = json.loads(error.read() or b"{}").get("codes", ["webhook-error"])
        raise PeerError(codes[0], f"the webhook answered {error.code}: {', '.join(codes)}") from None
