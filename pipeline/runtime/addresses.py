"""Addresses of tracking stores: absolute, and escaped as SQLAlchemy and MLflow read them."""

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.stage_io.paths import Paths, home_of

__all__ = [
    "absolute_address",
    "database_of",
    "remove_stray_folder",
    "sqlite_address",
    "tracking_address",
]

_NO_PATHS = {"databricks", "databricks-uc"}
"""Words that MLflow takes for a server."""


def tracking_address(paths: Paths) -> str:
    """Where runs are tracked: ``MLFLOW_TRACKING_URI``, or the project's own store."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return absolute_address(given, paths.root) if given else sqlite_address(paths.tracking_store)


def absolute_address(uri: str, root: Path) -> str:
    """The address with its relative path, if it has one, seen from the home of a workspace.

    An experiment runs in a copy of the workspace, with which a store in it would be deleted.

    Args:
        uri: MLflow tracking URI: of a server, a data base, a folder, or a folder's plain path.
        root: The workspace, or such a copy.
    """
    home, parts = home_of(root), urlsplit(uri)
    database = database_of(uri)
    if database is not None and not database.is_absolute():
        _, mark, options = uri.partition("?")
        return f"{sqlite_address(home / database, parts.scheme)}{mark}{options}"
    if parts.scheme not in {"", "file"} or parts.netloc or uri in _NO_PATHS:
        return uri
    return (home / url2pathname(parts.path if parts.scheme else uri)).as_uri()


def sqlite_address(file: Path, driver: str = "sqlite") -> str:
    """The address of a SQLite file, whatever is in its path.

    Only what would be misread is escaped: MLflow makes the folder of the address as it is written.
    """
    return f"{driver}:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store, and for what is no address."""
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    # Late, because it takes a second to import, and flows need the other functions only.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with suppress(ArgumentError):
        url = make_url(uri)
        if url.database and url.database != ":memory:" and "uri" not in url.query:
            return Path(url.database)
    return None


def remove_stray_folder(uri: str) -> None:
    """Delete the empty folder that MLflow makes of the escaped path of a SQLite file.

    Args:
        uri: Of a store to which MLflow has just connected.
    """
    written = Path(uri.partition("?")[0].removeprefix("sqlite:///")).parent
    database = database_of(uri)
    if database is not None and written != database.parent:
        with suppress(OSError):
            os.removedirs(written)
