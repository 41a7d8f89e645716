"""Prefect's server as flows need it: its data base made in one piece, its silence explained."""

import os
import subprocess
import sys
from pathlib import Path

from dsd.utils.errors import DsdError
from pipeline.execution.locks import blocking_lock
from pipeline.runtime.addresses import sqlite_address
from pipeline.runtime.proxies import through_proxy

__all__ = ["ServerError", "explained", "make_database", "named_server", "prepare_own_server"]

_DRIVER = "sqlite+aiosqlite"
_CONNECTIONS = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")


class ServerError(DsdError):
    """Prefect's server does not do what a flow needs; the message says why and what to do."""


def prepare_own_server() -> None:
    """Do what must be done before a flow brings a server along; nothing if the user names one.

    Raises:
        ServerError: Prefect's data base could not be made.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        make_database()


def make_database() -> None:
    """Make the file of a new Prefect data base of this project, whole or not at all.

    Every server makes the tables of a new file when it starts. If two do so at once both fail.

    Raises:
        ServerError: Prefect could not make it.
    """
    home = Path(os.environ["PREFECT_HOME"]).expanduser().absolute()
    database = home / "prefect.db"
    own = (None, "", sqlite_address(database, _DRIVER))
    if database.exists() or any(os.environ.get(name) not in own for name in _CONNECTIONS):
        return
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with blocking_lock(home / "prefect.db.lock"):
            if not database.exists():
                _make(database)
    except OSError as error:
        msg = (
            f"Prefect's data base {database} could not be made: {error.strerror}; make its folder "
            "writable, or set PREFECT_HOME to one that is"
        )
        raise ServerError(msg) from error


def _make(database: Path) -> None:
    print("making Prefect's data base, once", file=sys.stderr)
    part = database.with_name(f"{database.name}.part")
    for left in database.parent.glob(f"{part.name}*"):
        left.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
        env=os.environ | dict.fromkeys(_CONNECTIONS, sqlite_address(part, _DRIVER)),
        text=True,
        capture_output=True,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        msg = f"Prefect's data base {database} could not be made:\n" + "\n".join(lines[-5:])
        raise ServerError(msg)
    part.replace(database)


def named_server() -> str:
    """Address of the API of the lasting server that the user names.

    Raises:
        ServerError: None is named.
    """
    from prefect.settings import PREFECT_API_URL

    address: str | None = PREFECT_API_URL.value()
    if not address:
        msg = (
            "no Prefect server is named; "
            "set PREFECT_API_URL, for example to http://127.0.0.1:4200/api"
        )
        raise ServerError(msg)
    return address


def explained(error: Exception) -> ServerError | None:
    """What to tell a user about an error of Prefect's client; None if it is another error."""
    import httpx
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    reason = (str(error) or type(error).__name__).partition("\n")[0]
    if address is None and "ephemeral Prefect API server" in reason:
        msg = f"the Prefect server that the flow brings along did not start: {reason}"
        return ServerError(f"{msg}; run the same command again, or start a server with `make up`")
    if address is None or not (
        isinstance(error, httpx.HTTPError | httpx.InvalidURL) or "Failed to reach API" in reason
    ):
        return None
    msg = (
        f"no Prefect server answers as it should at {address}{through_proxy(address)}: {reason}; "
        "start it (`make up`), correct PREFECT_API_URL (such as http://127.0.0.1:4200/api), or "
        "unset it, so that a flow brings a server along"
    )
    return ServerError(msg)
