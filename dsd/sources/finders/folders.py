"""Folders of files: which are taken, and what is said of those that are left out."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from dsd.sources.formats.arrays import ARRAY_SUFFIXES, count_images
from dsd.sources.formats.pictures import FORMATS, SUFFIXES, count_in, stack_in
from dsd.sources.source import CORRECT, PICTURES, Item, Reading, Source
from dsd.utils.errors import DataError, one_line

__all__ = [
    "PARQUET_SUFFIXES",
    "find_pictures",
    "list_folder",
    "one_picture",
    "remedy_for",
    "suffix_of",
]

SYSTEM_NAMES = frozenset(
    {"@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "$RECYCLE.BIN"}
    | {"__MACOSX", "System Volume Information", "lost+found", "__pycache__"}
)
"""Folders in which systems keep previews and deleted files; so do those that begin with a dot."""

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})

NOT_READ = {
    ".mat": "MATLAB", ".czi": "Zeiss CZI", ".nd2": "Nikon ND2", ".lif": "Leica LIF",
    ".stk": "MetaMorph STK",
}  # fmt: skip
"""Formats of scientific images that are not read, by suffix."""

ARCHIVES = frozenset({".tar", ".gz", ".tar.gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})

OTHER_PICTURES = frozenset(
    {".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".pgm", ".ppm", ".tga"}
)
"""Other pictures that are not read."""

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

    def notes(self) -> Iterator[str]:
        """Say what is taken, by folder and suffix, and what is left out."""
        groups = Counter((name.rpartition("/")[0], suffix_of(name)) for name in self.taken)
        largest = sorted(groups, key=lambda group: (-groups[group], group))
        root = self.folder.name or self.folder.resolve().name
        for folder, suffix in largest[:_GROUPS]:
            shown = one_line(f"{root}/{folder}".rstrip("/"))
            yield f"took {groups[folder, suffix]} {suffix} from {shown}"
        if rest := largest[_GROUPS:]:
            count = sum(groups[group] for group in rest)
            yield f"took {count} more from {len({folder for folder, _ in rest})} other folders"
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

    def nothing(self, kind: str, name: str, wanted: frozenset[str]) -> DataError:
        """Make the error where no file is taken, for a ``kind`` of source."""
        there = f", but {self.left_out}" if self.left_out else ""
        suffixes = [suffix_of(self.folder.name), *(one for one, _ in self.other.most_common())]
        remedies = (remedy_for(one, kind) for one in suffixes)
        remedy = next((one for one in remedies if one), CORRECT)
        if kind == "parquet" and SUFFIXES & {*self.other}:
            remedy = "set data.source to folder"
        return DataError(
            f"{self.folder} holds no {name} ({' '.join(sorted(wanted))}){there}: {remedy}"
        )

    def take(self, path: Path, suffixes: frozenset[str]) -> bool:
        """Note a file; True where its suffix is among those to take."""
        suffix = suffix_of(path.name)
        if suffix not in suffixes:
            self.other[suffix] += 1
            return False
        name = path.relative_to(self.folder).as_posix()
        self.taken[name] = path
        if path.is_symlink() and not path.exists():
            self.dangling.append(one_line(name))
        return True


def _counted(suffixes: Counter[str]) -> str:
    """Numbers of files by suffix, the largest first."""
    ordered = sorted(suffixes, key=lambda suffix: (-suffixes[suffix], suffix))
    return _some([f"{suffixes[suffix]} {one_line(suffix)}" for suffix in ordered])


def _some(names: list[str]) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(names[:_GROUPS])
    return f"{shown} and {len(names) - _GROUPS} more" if len(names) > _GROUPS else shown


def suffix_of(name: str) -> str:
    """Return the suffix of a file in small letters, ``.nii.gz`` whole."""
    suffixes = Path(name).suffixes[-2:]
    whole = "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    return whole.lower() or "without suffix"


def remedy_for(suffix: str, kind: str) -> str | None:
    """Say what to do with files of a suffix that a ``kind`` of source does not read."""
    if suffix in PARQUET_SUFFIXES:
        return None if kind == "parquet" else "set data.source to parquet"
    if suffix in SUFFIXES:
        if kind == "folder":
            return "set data.source to file, or data.path to the folder that holds it"
        return "set data.source to folder and data.path to a folder"
    if suffix in ARRAY_SUFFIXES:
        return f"set data.source to {ARRAY_SUFFIXES[suffix]}"
    if suffix == ".zip":
        return "set data.source to zip and data.path to the archive"
    if suffix in ARCHIVES:
        return "unpack it; set data.source to folder, and data.path to the folder with its files"
    if suffix in OTHER_PICTURES:
        return "save them as PNG, in 8 bits and without loss"
    if suffix in NOT_READ:
        return (
            f"{NOT_READ[suffix]} is not read; save it as TIFF, or read it with a function of your "
            "own (data.source: function)"
        )
    return None


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
            elif content.take(path, suffixes):
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
        found = Counter(suffix for suffix in map(suffix_of, names) if suffix in suffixes)
        if found:
            content.hidden.update(found)
            content.hidden_names.add(entry.name)


def find_pictures(folder: Path, reading: Reading = PICTURES) -> Source:
    """Find the image files in a folder and its subfolders, sorted by their relative names.

    Raises:
        DataError: There is none.
    """
    content = list_folder(folder, SUFFIXES)
    found, notes = content.taken, [*content.notes()]
    if not found:
        raise content.nothing("folder", "images", SUFFIXES)
    return _pictures([found[name] for name in sorted(found)], notes, reading)


def one_picture(path: Path, reading: Reading = PICTURES) -> Source:
    """Find the images in one file."""
    return _pictures([path], [], reading)


def _pictures(paths: list[Path], notes: list[str], reading: Reading) -> Source:
    total = len(paths)
    for one in FORMATS:
        if one.count_images is not None:
            here = [path for path in paths if suffix_of(path.name) in one.suffixes]
            counted = [_count(path, reading) for path in here]
            images = sum(count for count, _ in counted)
            total += images - len(here)
            if images > len(here):
                notes.append(f"{len(here)} {one.name} files hold {images} images")
            if here and counted[0][1]:
                notes.append(f"{one_line(here[0].name)}: {counted[0][1]}")
    return Source(total, [Item(one_line(path), path) for path in paths], tuple(notes))


def _count(path: Path, reading: Reading) -> tuple[int, str]:
    """Images in a file, and a note on its axes."""
    if not (reading.measured and path.is_file()):
        return count_in(path), ""
    opener = stack_in(path)
    return (1, "") if opener is None else count_images(opener, reading.axes)
