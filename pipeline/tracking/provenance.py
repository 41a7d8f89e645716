"""Where a result comes from: commit, versions, and how it was measured."""

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["NOT_PROTOCOL", "commit_of", "is_dirty", "protocol_id", "versions"]

NOT_PROTOCOL = {"seed", "notes", "without_frechet", "extractors"}
"""Fields of a summary's protocol that may differ; extractors are compared one by one."""

_PACKAGES = ("torch", "numpy", "scipy", "dvc", "mlflow")


def commit_of(root: Path) -> str | None:
    """The commit that is checked out in ``root``; None if git knows none that has the project."""
    # A folder that was unpacked inside another repository has nothing to do with its commit.
    has_project = _git(root, "cat-file", "-e", "HEAD:./params.yaml") is not None
    return _git(root, "rev-parse", "HEAD") if has_project else None


def is_dirty(root: Path) -> bool | None:
    """Whether tracked files differ from the commit; None if there is no commit."""
    if commit_of(root) is None:
        return None
    # dvc.lock is always in motion while a pipeline runs; it says nothing about the code.
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return None if changes is None else bool(changes)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, if they are installed."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def protocol_id(fields: Mapping[str, object]) -> str:
    """Hash of the fields of a protocol that must be equal for numbers to compare."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git, or None if git is not installed or refuses."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
