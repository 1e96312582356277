"""Whether the Hugging Face Hub can be reached; looked at only when asked."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from typing import Final

from evomerge.checkup.finding import Finding
from evomerge.errors import without_secrets

_HUB: Final = "https://huggingface.co"
_LIMIT_S: Final = 5.0


def hub() -> Finding:
    """Whether the hub answers, at `$HF_ENDPOINT` if that is set."""
    endpoint = os.environ.get("HF_ENDPOINT", _HUB)
    began = time.monotonic()
    shown = without_secrets(endpoint)
    fix = "check the network and its proxy, or use folders as parents and set HF_HUB_OFFLINE=1"
    if not endpoint.startswith(("http://", "https://")):
        return Finding("online", "hub", "warning", f"HF_ENDPOINT is no address: {shown}", "set it to https://HOST")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/whoami-v2", timeout=_LIMIT_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return Finding("online", "hub", "warning", f"{shown} answers with {error.code}", fix)
    except OSError as error:
        return Finding("online", "hub", "warning", f"{shown} cannot be reached: {without_secrets(str(error))}", fix)
    return Finding("online", "hub", "ok", f"{shown} answers in {1000 * (time.monotonic() - began):.0f} ms")
