"""Environment of all that a flow starts: no telemetry, no pickles, files in the project."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.runtime.addresses import sqlite_address
from pipeline.runtime.proxies import ask_local_servers_directly, is_local
from pipeline.stage_io.paths import home_of

__all__ = ["ROOT", "set_defaults", "stage_environment"]

ROOT = Path(__file__).resolve().parents[2]
"""The workspace: the folder of dvc.yaml."""

_INDEX = home_of(ROOT) / ".dvc" / "tmp" / "site"

# MLflow takes only the word "true" for DO_NOT_TRACK; Prefect and DVC take it too.
DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "true",
    "DVC_STUDIO_OFFLINE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Otherwise any page that this machine's browser shows may start runs through the API.
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:4200,http://localhost:4200",
    # Prefect and MLflow would write and read pickles; nothing here needs any.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # DVC unpickles this index, and would keep it where every user of the machine may write.
    "DVC_SITE_CACHE_DIR": str(_INDEX),
    # The default of 20 s is too short for a busy machine's first start, which makes a data base.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Each project has its own Prefect data base, beside its MLflow store.
    "PREFECT_HOME": str(home_of(ROOT) / ".prefect"),
}


def set_defaults() -> None:
    """Set what the user has not set; to be called before Prefect is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    database = Path(os.environ["PREFECT_HOME"]).expanduser().absolute() / "prefect.db"
    if {"%", "?"} & set(str(database)):  # Prefect would write them into the address unescaped
        address = sqlite_address(database, "sqlite+aiosqlite")
        os.environ.setdefault("PREFECT_API_DATABASE_CONNECTION_URL", address)
    ask_local_servers_directly()
    _forget_proxies_that_prefect_cannot_use()
    if _INDEX.parents[1].is_dir():
        # DVC itself would make it writable for all.
        _INDEX.mkdir(mode=0o700, parents=True, exist_ok=True)


def _forget_proxies_that_prefect_cannot_use() -> None:
    """Prefect's client refuses to start with a SOCKS proxy, also where it would not ask it."""
    address = os.environ.get("PREFECT_API_URL")
    if find_spec("socksio") is None and (address is None or is_local(address)):
        for name in ("all_proxy", "ALL_PROXY"):
            if os.environ.get(name, "").lower().startswith("socks"):
                del os.environ[name]


def stage_environment() -> dict[str, str]:
    """Environment for ``dvc``: stages get this interpreter, unbuffered."""
    folder = str(Path(sys.executable).parent)
    return {
        "DSD_PYTHON": sys.executable,  # for pipeline/stage.sh
        **os.environ,
        "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
