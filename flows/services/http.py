"""Asking servers over HTTP without importing their clients, which takes seconds."""

import base64
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException

__all__ = ["get_text", "prefect_version"]

_TIMEOUT_S = 5.0


def get_text(url: str) -> str | None:
    """The text at an address; None if nothing answers there, or refuses."""
    try:
        request = urllib.request.Request(url)
        if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
            coded = base64.b64encode(secret.encode()).decode()
            request.add_header("Authorization", f"Basic {coded}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            text: str = answer.read().decode(errors="replace")
    except (OSError, ValueError, HTTPException):
        return None
    return text


def prefect_version(api: str) -> str | None:
    """Version of the Prefect server of an API address; None if no such server answers."""
    text = get_text(f"{api}/admin/version")
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    return found if isinstance(found, str) else None
