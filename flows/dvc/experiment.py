"""Runs with other parameters than the user's: in a copy of the workspace, kept as DVC experiments.

The copy is a git repository of its own below the home's ``.dvc/tmp/exps``, as with
``dvc exp run --temp``. A git worktree will not do: worktrees share their references, and
``dvc exp save`` works on ``refs/exps/exec`` and the stash. Two of them at a time fail, and they
would get in the way of a user's ``git stash`` or ``dvc exp run``.

The copy shares DVC's cache with the home. What must outlive it (resumable states, the MLflow
store) is in the home anyway, see :func:`pipeline.stage_io.paths.home_of`.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.config_schema import RelPath
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo

from dsd.utils.errors import DataError, ParamsError
from dsd.utils.files import published, replaced
from flows.dvc.repository import check_home, git, git_process, top_of
from flows.dvc.runner import OnLine, run_dvc
from pipeline.execution.locks import BusyError, exclusive, locks_work_in
from pipeline.params.model import Params
from pipeline.params.reader import flatten, load_params, update_params
from pipeline.stage_io.paths import Paths

__all__ = [
    "REPORTS",
    "check_name",
    "check_named_files",
    "default_name",
    "keep_report",
    "save_experiment",
    "workspace_copy",
]

REPORTS = Path("reports") / "experiments"
"""Where the home keeps the reports of experiments, by name."""

_COPIES = Path(".dvc") / "tmp" / "exps" / "flows"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}")
_KEPT = ("summary.json", "report.html", "evaluate/samples/generator.png")
_DIFF = [
    "diff",
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--ignore-submodules",
    "HEAD",
]


def check_name(name: str) -> None:
    """Make sure that git and file systems take the name of an experiment or a sweep.

    Raises:
        ParamsError: They do not.
    """
    if not _NAME.fullmatch(name) or name.endswith((".lock", ".")) or ".." in name:
        msg = (
            f"{name!r} cannot be an experiment's name; use at most 100 letters, digits and any of "
            "_ . + = -, beginning with a letter or digit"
        )
        raise ParamsError(msg)


def check_named_files(home: Path, params: Params) -> None:
    """Make sure that a copy of the workspace will see the files that the parameters name.

    Raises:
        DataError: The data do not exist, or a relative path leads out of the workspace.
    """
    data = Path(params.data.path)
    for key, path in [("data.path", str(data)), *_own_code_and_weights(params)]:
        if not Path(path).is_absolute() and ".." in Path(path).parts:
            msg = (
                f"params.yaml: {key} = {path!r} leads out of the workspace, and a run with other "
                "parameters is made in a copy elsewhere; write the absolute path"
            )
            raise DataError(msg)
    in_cache = any((home / f"{path}.dvc").is_file() for path in (data, *data.parents))
    if not (home / data).exists() and not in_cache:
        msg = f"params.yaml: data.path = {str(data)!r} does not exist (seen from {home}); "
        raise DataError(msg + "correct the path")


def default_name(home: Path, values: Mapping[str, Any], params: Params) -> str:
    """A name for the experiment that has these values, the same each time it is run."""
    # Other code makes another experiment, though all values are the same.
    code = git(home, *_DIFF, "--", ".", ":!params.yaml", ":!dvc.lock")
    state = [json.dumps(flatten(params)), hashlib.sha256(code).hexdigest()]
    short = hashlib.sha256("\n".join(state).encode()).hexdigest()[:6]
    words = []
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        word = re.sub(r"[^A-Za-z0-9_.+=]+", "-", text).strip("-.")
        words.append(f"{key.rpartition('.')[2]}-{word}")
    return "-".join([*words, short])[-100:].lstrip("-.+=")


@contextmanager
def workspace_copy(
    home: Path, name: str, values: Mapping[str, Any], on_line: OnLine
) -> Iterator[Path]:
    """A copy of the workspace as it is now, with other parameters, for the length of the block.

    It has the last commit, uncommitted changes of tracked files, DVC's local settings, the files
    that ``values`` name (links to the home's), and DVC-tracked data. ``home`` stays as it is.

    Raises:
        ParamsError: The name cannot be one, belongs to another experiment, or values are wrong.
        DataError: The parameters name a file that the copy cannot see.
        BusyError: An experiment of this name is being run.
        DvcError: git or DVC failed.
    """
    check_home(home)
    check_name(name)
    _prune(home)
    clone = home / _COPIES / name
    root = clone / _place(home)
    with exclusive(_lock(home, name), f"experiment {name}"):
        try:
            _clone(home, clone)
            _share_settings(home, root)
            if values:
                update_params(root, values)
            check_named_files(home, load_params(root))
            _refuse_other_of_this_name(home, root, name)
            _bring_data(home, root, on_line)
            yield root
        finally:
            _remove(home, clone)


def save_experiment(home: Path, root: Path, name: str, on_line: OnLine) -> None:
    """Keep a copy's results in ``home`` as the DVC experiment ``name``; an old one gives way.

    Raises:
        DvcError: DVC or git failed.
    """
    # DVC 3.67 forgets a new dvc.lock that does not lie at the top of the repository.
    git(root, "add", "dvc.lock")
    run_dvc(root, ["exp", "save", "--force", "--name", name], on_line)
    reference = _reference(root, name)
    quiet = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    git(home, "fetch", *quiet, str(top_of(root)), f"+{reference}:{reference}")


def keep_report(home: Path, root: Path, name: str) -> Path:
    """Copy page, numbers and pictures of a copy's run to ``home``, where people look for them.

    Returns:
        The folder, which ``python -m pipeline compare`` takes.
    """
    source, target = Paths(root).report(""), home / REPORTS / name
    with replaced(target) as fresh:
        for name, file in [("params.yaml", Paths(root).params), *((n, source / n) for n in _KEPT)]:
            if file.is_file():
                with published(fresh / name) as copy:
                    copy.write(file.read_bytes())
    return target


def _lock(home: Path, name: str) -> Path:
    return home / ".dsd" / "locks" / "experiments" / name


def _prune(home: Path) -> None:
    """Remove copies whose runs were killed."""
    copies = home / _COPIES
    # Without locks a copy may be that of a living run.
    for clone in copies.iterdir() if copies.is_dir() and locks_work_in(copies) else []:
        with suppress(BusyError), exclusive(_lock(home, clone.name), clone.name):
            _remove(home, clone)


def _place(home: Path) -> Path:
    """Where the workspace lies in its git repository, which may hold other things too."""
    return home.resolve().relative_to(top_of(home).resolve())


def _remove(home: Path, clone: Path) -> None:
    """Delete a copy, and DVC's notes about it outside."""
    with suppress(DvcException, OSError):
        root = clone / _place(home)
        if (root / ".dvc").is_dir():
            with Repo(str(root)) as repo:
                notes = repo.site_cache_dir
            shutil.rmtree(notes, ignore_errors=True)
    shutil.rmtree(clone, ignore_errors=True)


def _clone(home: Path, clone: Path) -> None:
    """The last commit with uncommitted changes of tracked files."""
    _remove(home, clone)
    clone.parent.mkdir(parents=True, exist_ok=True)
    head = git(home, "rev-parse", "HEAD").decode().strip()
    git(home, "clone", "--quiet", "--no-checkout", "--no-tags", str(top_of(home)), str(clone))
    for key in ("user.name", "user.email"):
        value = git_process(home, "config", key).stdout.decode().strip()
        if value:
            git(clone, "config", key, value)
    git(clone, "checkout", "--quiet", "--detach", head)
    changes = git(home, *_DIFF)
    if changes:
        git(clone, "apply", "--index", "--whitespace=nowarn", content=changes)


def _share_settings(home: Path, root: Path) -> None:
    """Give the copy the home's cache and local settings; relative paths keep their meaning."""
    with Repo(str(home)) as repo:
        cache = repo.cache.local_cache_dir
        remotes = {name: {"url": known["url"]} for name, known in repo.config["remote"].items()}
    local = home / ".dvc" / "config.local"
    if local.is_file():
        shutil.copyfile(local, root / ".dvc" / "config.local")
    with Repo(str(root)) as repo, repo.config.edit("local") as settings:
        # Written down as relative to the copy, because DVC can only write ASCII.
        settings.setdefault("cache", {})["dir"] = RelPath(cache)
        for name, known in remotes.items():
            settings.setdefault("remote", {}).setdefault(name, {}).update(known)


def _refuse_other_of_this_name(home: Path, root: Path, name: str) -> None:
    """The same experiment may be run again; another one must not take its name."""
    taken = git_process(home, "show", f"{_reference(root, name)}:./params.yaml")
    if taken.returncode != 0:
        return
    theirs = None  # parameters of another version stay so
    with TemporaryDirectory() as folder, suppress(ParamsError):
        file = Path(folder) / "params.yaml"
        file.write_bytes(taken.stdout)
        theirs = load_params(file)
    if theirs != load_params(root):
        msg = (
            f"there is an experiment {name!r} with other parameters; choose another name, leave "
            f"the name out, or remove that one with `dvc exp remove {name}`"
        )
        raise ParamsError(msg)


def _reference(root: Path, name: str) -> str:
    """The git reference under which DVC keeps an experiment of the commit that ``root`` is at."""
    return str(ExpRefInfo(git(root, "rev-parse", "HEAD").decode().strip(), name))


def _bring_data(home: Path, root: Path, on_line: OnLine) -> None:
    """Data that DVC tracks from the cache; other files that the parameters name as links."""
    tracked = git(root, "ls-files", "-z", "--", "*.dvc").decode().split("\0")[:-1]
    if tracked:
        run_dvc(root, ["checkout", *tracked], on_line)
    params = load_params(root)
    named = [params.data.path, *(path for _, path in _own_code_and_weights(params))]
    for path in named:  # what does not exist is missed by the stage that needs it
        if not Path(path).is_absolute() and (home / path).exists():
            _link(home / path, root / path)


def _own_code_and_weights(params: Params) -> Iterator[tuple[str, str]]:
    """Files besides the data that parameters may name, each with the key that names it."""
    if params.evaluate.inception_weights is not None:
        yield "evaluate.inception_weights", params.evaluate.inception_weights
    if params.evaluate.published_statistics is not None:
        yield "evaluate.inception_statistics", str(params.evaluate.published_statistics[1])
    for space in [*params.evaluate.features, params.distill.selection.features]:
        module, is_function, _ = space.partition(":")
        package = module.partition(".")[0]
        for path in (package, f"{package}.py") if is_function else (space,):
            yield "evaluate.features", path


def _link(source: Path, target: Path) -> None:
    """Make what is in ``source`` visible at ``target``, where git or DVC has not put it."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    elif source.is_dir() and target.is_dir() and not target.is_symlink():
        for inner in source.iterdir():
            _link(inner, target / inner.name)
