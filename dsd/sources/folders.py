"""Which files below a folder are taken, and what is said of those that are left out."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from dsd.utils.errors import DataError, one_line

__all__ = ["FolderContent", "list_folder", "suffix_of"]

SYSTEM_NAMES = frozenset(
    {"@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "$RECYCLE.BIN"}
    | {"__MACOSX", "System Volume Information", "lost+found", "__pycache__"}
)
"""Folders in which systems keep previews and deleted files; so do those that begin with a dot."""

_GROUPS = 5
"""Folders, links or suffixes that are named; the others are summed up."""


@final
@dataclass
class FolderContent:
    """The files below a folder."""

    folder: Path
    taken: dict[str, Path] = field(default_factory=dict)
    """Files with a suffix that was asked for, by their names relative to the folder."""

    other: Counter[str] = field(default_factory=Counter)
    """Files of other suffixes."""

    hidden: Counter[str] = field(default_factory=Counter)
    """Files with a suffix that was asked for, but hidden or in hidden folders."""

    hidden_names: set[str] = field(default_factory=set)
    linked: list[str] = field(default_factory=list)
    """Links to folders that were followed."""

    not_followed: list[str] = field(default_factory=list)
    """Links to folders that are read already, or that hold this one."""

    dangling: list[str] = field(default_factory=list)
    """Links among ``taken`` that lead nowhere."""

    repeated: int = 0
    """Links among ``taken`` to files that are taken by another name, too."""

    @property
    def left_out(self) -> str:
        """What is not taken, by suffix; empty if nothing."""
        parts = []
        if self.hidden:
            names = _some(sorted(one_line(name) for name in self.hidden_names))
            parts.append(f"{_counted(self.hidden)} hidden or in hidden folders ({names})")
        if self.other:
            parts.append(f"{_counted(self.other)} (not read)")
        return ", ".join(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Short sentences on what is taken, by folder and suffix, and what is left out."""
        return (*self._taken_lines(), *self._other_lines())

    def _taken_lines(self) -> Iterator[str]:
        groups = Counter((name.rpartition("/")[0], suffix_of(name)) for name in self.taken)
        largest = sorted(groups, key=lambda group: (-groups[group], group))
        root = self.folder.name or self.folder.resolve().name
        for folder, suffix in largest[:_GROUPS]:
            shown = one_line(f"{root}/{folder}".rstrip("/"))
            yield f"took {groups[folder, suffix]} {suffix} from {shown}"
        rest = largest[_GROUPS:]
        if rest:
            count = sum(groups[group] for group in rest)
            yield f"took {count} more from {len({folder for folder, _ in rest})} other folders"

    def _other_lines(self) -> Iterator[str]:
        if self.left_out:
            yield f"left out: {self.left_out}"
        if self.linked:
            yield (
                f"followed links to folders: {_some(self.linked)}; DVC does not see what changes "
                "behind them: run `dvc repro --force prepare` after a change"
            )
        if self.not_followed:
            names = _some(self.not_followed)
            yield f"left out: links to folders that are read already or hold this one: {names}"
        if self.repeated:
            yield f"links to files that are taken by another name, too: {self.repeated}"
        if self.dangling:
            yield (
                f"links that lead nowhere: {len(self.dangling)} ({_some(self.dangling)}); remove "
                "them, because DVC stops at them whatever data.on_error is"
            )


def _counted(suffixes: Counter[str]) -> str:
    """Numbers of files by suffix, the largest first."""
    ordered = sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix))
    return _some([f"{suffixes[suffix]} {one_line(suffix)}" for suffix in ordered])


def _some(names: list[str]) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(names[:_GROUPS])
    return f"{shown} and {len(names) - _GROUPS} more" if len(names) > _GROUPS else shown


def suffix_of(name: str) -> str:
    """The suffix of a file in small letters, ``.nii.gz`` whole."""
    suffixes = Path(name).suffixes[-2:]
    whole = "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    return whole.lower() or "without suffix"


def list_folder(folder: Path, suffixes: frozenset[str]) -> FolderContent:
    """List a folder and its subfolders, those behind links too; each real folder once.

    Hidden files and folders and those of systems are counted but not taken. Where a folder is
    both there and linked to, its own name counts.

    Args:
        folder: Where to begin.
        suffixes: Of files to take, in small letters, with the dot.

    Raises:
        DataError: A folder cannot be listed.
    """
    root = os.path.realpath(folder)
    content, files = FolderContent(folder), set[str]()
    folders, links = deque([(folder, root)]), deque[tuple[Path, str]]()
    # A link to a folder that holds this one leads in a circle.
    seen = {str(above) for above in Path(root).parents}
    while folders or links:
        linked = not folders
        here, target = (links if linked else folders).popleft()
        if linked:
            known = content.not_followed if target in seen else content.linked
            known.append(one_line(here.relative_to(folder).as_posix()))
        if target in seen:
            continue
        seen.add(target)
        for entry in _visible(here, suffixes, content):
            path, link = here / entry.name, entry.is_symlink()
            real = os.path.realpath(path) if link else f"{target}/{entry.name}"
            if path.is_dir() if link else entry.is_dir():
                (links if link else folders).append((path, real))
            elif _take(path, suffixes, content):
                content.repeated += real in files
                files.add(real)
    return content


def _visible(
    folder: Path, suffixes: frozenset[str], content: FolderContent
) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, by name; hidden entries are noted instead."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        msg = f"{one_line(folder)} cannot be listed ({error.strerror}): allow it, or move it away"
        raise DataError(msg) from error
    for entry in ordered:
        if not entry.name.startswith(".") and entry.name not in SYSTEM_NAMES:
            yield entry
            continue
        names = [entry.name]
        if entry.is_dir(follow_symlinks=False):
            names = [name for _, _, below in os.walk(entry.path) for name in below]
        found = Counter(map(suffix_of, names))
        found = Counter({suffix: found[suffix] for suffix in suffixes & found.keys()})
        if found:
            content.hidden.update(found)
            content.hidden_names.add(entry.name)


def _take(path: Path, suffixes: frozenset[str], content: FolderContent) -> bool:
    """Whether a file is to be taken; notes what it is."""
    suffix = suffix_of(path.name)
    if suffix not in suffixes:
        content.other[suffix] += 1
        return False
    name = path.relative_to(content.folder).as_posix()
    content.taken[name] = path
    if path.is_symlink() and not path.exists():
        content.dangling.append(one_line(name))
    return True
