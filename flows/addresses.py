"""Asking servers over HTTP without importing their clients, which takes seconds."""

import base64
import json
import os
import urllib.error
import urllib.request

__all__ = ["ask", "prefect_version"]

_TIMEOUT_S = 5.0


def ask(url: str) -> str | None:
    """The text at an address; None if nothing answers there, or refuses."""
    request = urllib.request.Request(url)
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            text: str = answer.read().decode(errors="replace")
    except (OSError, ValueError):
        return None
    return text


def prefect_version(api: str) -> str | None:
    """Version of the Prefect server of an API address; None if no such server answers."""
    text = ask(f"{api}/admin/version")
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    return found if isinstance(found, str) else None
