"""The git repository of the workspace: its own, that of a folder above it, or none.

``python -m flows.dvc.repository`` tells DVC whether there is one: without this DVC refuses to work
in a downloaded archive. `make setup` calls it.
"""

import os
import subprocess
import sys
from pathlib import Path

from dvc.scm import SCM, SCMError

from flows.dvc.runner import DvcError, run_dvc
from flows.runtime.environment import ROOT

__all__ = ["check_home", "git", "git_process", "tell_dvc", "top_of"]

_PROJECT = ("dvc.yaml", "params.yaml", ".dvc/config", "pipeline/stage.sh")
_OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_KEPT_AS = "a run with other parameters is kept as a DVC experiment"


def tell_dvc(root: Path) -> None:
    """Make DVC work without git where there is no repository, and with git where there is one.

    The note is DVC's setting ``core.no_scm`` of this clone; one that was made before a repository
    was, is taken back.

    Raises:
        DvcError: DVC cannot change its settings.
    """
    settings = root / ".dvc" / "config.local"
    noted = settings.is_file() and "no_scm" in settings.read_text(encoding="utf-8")
    if noted == _in_repository(root):
        change = ["--unset", "core.no_scm"] if noted else ["core.no_scm", "true"]
        run_dvc(root, ["config", "--local", *change], lambda _line: None)


def _in_repository(root: Path) -> bool:
    """Whether DVC finds a git repository in ``root`` or above it."""
    try:
        SCM(str(root)).close()
    except SCMError:
        return False
    return True


def check_home(home: Path) -> None:
    """Make sure that experiments can be made from the workspace ``home``.

    Raises:
        DvcError: Its files are not in a git repository with a commit, or git refuses to read it.
    """
    found = git_process(home, "rev-parse", "--show-toplevel")
    if found.returncode != 0 and not _in_repository(home):
        msg = (
            f"{_KEPT_AS}, and {home} is in no git repository: "
            "`git init && git add -A && git commit -m start` makes one of it"
        )
        raise DvcError(msg)
    if found.returncode != 0:
        msg = f"{_KEPT_AS} in git, and git refuses {home}: {_words(found)}"
        raise DvcError(msg)
    if git_process(home, "rev-parse", "--verify", "HEAD").returncode != 0:
        msg = (
            f"{_KEPT_AS} of the last commit, and there is none yet: "
            "`git add -A && git commit -m start` makes one"
        )
        raise DvcError(msg)
    # An archive that was unpacked inside another repository is not part of that one yet.
    known = git(home, "ls-files", "-z", "--", *_PROJECT).decode().split("\0")
    unknown = [name for name in _PROJECT if name not in known]
    if not unknown:
        return
    ignored = git_process(home, "check-ignore", "--verbose", *unknown).stdout.decode()
    rule = ignored.partition("\t")[0]
    remedy = (
        f"the rule {rule!r} ignores it; change that rule, or move the folder elsewhere"
        if rule
        else "`git add -A . && git commit -m start` in this folder adds it"
    )
    msg = (
        f"{_KEPT_AS} in git, but the repository {top_of(home)} does not know {unknown[0]} of "
        f"{home}: {remedy}"
    )
    raise DvcError(msg)


def top_of(root: Path) -> Path:
    """The folder of the repository that ``root`` lies in.

    Raises:
        DvcError: It lies in none.
    """
    return Path(os.fsdecode(git(root, "rev-parse", "--show-toplevel").rstrip(b"\n")))


def git(root: Path, *arguments: str, content: bytes | None = None) -> bytes:
    """Output of a git command that is run in ``root`` with the standard input ``content``.

    Raises:
        DvcError: git is not installed, or failed; the message is git's.
    """
    done = git_process(root, *arguments, content=content)
    if done.returncode != 0:
        raise DvcError(f"git {arguments[0]} failed: {_words(done)}")
    return done.stdout


def git_process(
    root: Path, *arguments: str, content: bytes | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in ``root``, whatever repository the caller's environment is about.

    Raises:
        DvcError: git is not installed.
    """
    command = ["git", "-C", str(root), *arguments]
    own = {name: value for name, value in os.environ.items() if name not in _OTHER_REPOSITORY}
    try:
        return subprocess.run(command, input=content, capture_output=True, check=False, env=own)
    except FileNotFoundError as error:
        msg = f"{_KEPT_AS} in git, and git is not installed: install it"
        raise DvcError(msg) from error


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    """What git said, on one line."""
    return " ".join(done.stderr.decode(errors="replace").removeprefix("fatal: ").split())


if __name__ == "__main__":
    try:
        tell_dvc(ROOT)
    except DvcError as error:
        sys.exit(f"error: {error}")
