"""Images as users have them: Parquet files, a folder of picture files, or a torchvision set.

``find_images`` says what there is; ``Reader`` decodes it in order, refuses what is broken, mixed
or not 8-bit, and brings everything to one size. Only a block of images is in memory at a time.
"""

import hashlib
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from jaxtyping import UInt8

from dsd.sources.decoding import MAX_BYTES, Encoding, PictureFile, Planes, area_average
from dsd.sources.folders import FolderContent, list_folder, suffix_of
from dsd.sources.parquet import count_rows, is_parquet, read_rows
from dsd.sources.tiff import ONE_MAP, is_tiff, read_pages
from dsd.utils.errors import DataError, one_line

__all__ = ["Item", "Reader", "Refused", "Source", "find_images"]

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"}) | TIFF_SUFFIXES

BLOCK_BYTES = 2**20
"""Decoded pixels in memory at a time, about."""

COUNTED = 10_000
"""First images that are counted by kind, to name all kinds or to keep the most common one."""

COUNTED_BYTES = 2**30
"""Encoded bytes that are read to count them, about."""

_KINDS = 5
"""Kinds that a message names."""

PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})

FORMATS = {
    ".npy": "a NumPy array", ".npz": "NumPy arrays", ".h5": "HDF5", ".hdf5": "HDF5",
    ".zarr": "Zarr", ".mrc": "MRC", ".mrcs": "MRC", ".fits": "FITS", ".fit": "FITS",
    ".dcm": "DICOM", ".nii": "NIfTI", ".nii.gz": "NIfTI", ".mat": "MATLAB", ".czi": "Zeiss CZI",
    ".nd2": "Nikon ND2", ".lif": "Leica LIF", ".stk": "MetaMorph STK",
}  # fmt: skip
"""Formats of scientific images that are not read, by suffix."""

ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tar.gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})

_CORRECT = "correct data.path in params.yaml"

PICTURES = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".pgm", ".ppm", ".tga"})
"""Other pictures that are not read."""

TORCHVISION = {"cifar10": "CIFAR10", "fashion-mnist": "FashionMNIST", "celeba": "CelebA"}


@final
@dataclass(frozen=True)
class Item:
    """One image of a source, not decoded yet."""

    name: str
    """For messages: which file or row."""

    content: bytes | Path | np.ndarray | None
    """Encoded bytes, the file that has them, or pixels [c, h, w]; None where a table is empty.
    Encoded bytes may hold several images."""

    def load(self) -> bytes | np.ndarray:
        """The encoded bytes or the pixels.

        Raises:
            ValueError: There are none.
        """
        if self.content is None:
            msg = "has no bytes"
            raise ValueError(msg)
        return _read(self.content) if isinstance(self.content, Path) else self.content


def _read(path: Path) -> bytes:
    """All bytes of a file on the disk; a device or a pipe might never end, or never begin.

    Raises:
        ValueError: It cannot be read, or is no file of a picture's size.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            msg = "cannot be read: it is no regular file"
            raise ValueError(msg)
        if status.st_size > MAX_BYTES:
            msg = f"has {status.st_size} bytes, more than {MAX_BYTES}; split or crop it"
            raise ValueError(msg)
        return path.read_bytes()
    except OSError as error:
        dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
        msg = "is a link that leads nowhere" if dangling else f"cannot be read: {error.strerror}"
        raise ValueError(msg) from error


@final
@dataclass(frozen=True)
class Source:
    """Images that were found."""

    count: int
    """How many images there are, broken ones included; the pages of TIFF files count."""

    items: Iterable[Item]
    """What holds the images, always in the same order, as often as it is asked."""

    notes: tuple[str, ...] = ()
    """Short sentences: what was taken, by folder and suffix, and what was left out."""

    square: bool = False
    """Whether to cut each image to its central square (CelebA: 178 x 218 to 178 x 178)."""


@final
@dataclass(frozen=True)
class Refused:
    """An image that could not be used, and why."""

    name: str
    reason: str


@final
@dataclass(frozen=True)
class _Items(Iterable[Item]):
    """Items that are made while they are gone through."""

    begin: Callable[[], Iterator[Item]]

    def __iter__(self) -> Iterator[Item]:
        return self.begin()


def find_images(
    kind: Literal["parquet", "folder", "torchvision"], path: Path, name: str | None
) -> Source:
    """Find the images of a source without decoding any.

    Args:
        kind: Kind of source.
        path: The Parquet file, or a folder of these; the folder of pictures; for torchvision its
            folder for downloads.
        name: Which torchvision set: cifar10, fashion-mnist or celeba, its training part.

    Raises:
        DataError: There is nothing at ``path``, it is of another kind, or a download failed.
    """
    if kind == "torchvision":
        return _torchvision(path, name or "")
    if not path.exists():
        msg = f"{path} does not exist: {_CORRECT}"
        raise DataError(msg)
    if not (path.is_dir() or path.is_file()):
        msg = f"{path} is neither a file nor a folder: {_CORRECT}"
        raise DataError(msg)
    if path.is_dir():
        return _folder(path) if kind == "folder" else _shards(path)
    suffix = ".parquet" if is_parquet(path) else suffix_of(path.name)
    remedy = _remedy(suffix, kind)
    if kind == "parquet" and (suffix in PARQUET_SUFFIXES or remedy is None):
        return Source(count_rows(path), _Items(partial(_rows, path)))
    msg = f"{path} is a file {suffix}: {remedy or _CORRECT}"
    raise DataError(msg)


def _remedy(suffix: str, kind: Literal["parquet", "folder"]) -> str | None:
    """What to do with files of a suffix that ``kind`` of source does not read."""
    if suffix in PARQUET_SUFFIXES:
        return None if kind == "parquet" else "set data.source to parquet"
    if suffix in SUFFIXES:
        change = "set data.path to the folder that holds it"
        return (
            change if kind == "folder" else "set data.source to folder and data.path to a folder"
        )
    if suffix in ARCHIVES:
        return "unpack it; set data.source to folder, and data.path to the folder with its files"
    if suffix in PICTURES:
        return "save them as PNG, in 8 bits and without loss"
    if suffix in FORMATS:
        return (
            f"{FORMATS[suffix]} is {ONE_MAP}; save them as grey or RGB pictures (PNG, TIFF), and "
            "set data.source to folder and data.path to their folder"
        )
    return None


def _nothing(content: FolderContent, kind: Literal["parquet", "folder"]) -> DataError:
    """The error where no file of a folder can be taken."""
    name, wanted = (
        ("images", SUFFIXES) if kind == "folder" else ("Parquet files", PARQUET_SUFFIXES)
    )
    there = f", but {content.left_out}" if content.left_out else ""
    suffixes = [suffix_of(content.folder.name), *(one for one, _ in content.other.most_common())]
    remedies = [remedy for one in suffixes if (remedy := _remedy(one, kind))]
    remedy = next(iter(remedies), _CORRECT)
    if kind == "parquet" and SUFFIXES & {*content.other}:
        remedy = "set data.source to folder"
    return DataError(
        f"{content.folder} holds no {name} ({' '.join(sorted(wanted))}){there}: {remedy}"
    )


def _folder(folder: Path) -> Source:
    """The picture files in a folder and its subfolders, sorted by their relative names."""
    content = list_folder(folder, SUFFIXES)
    found, notes = content.taken, content.notes
    if not found:
        raise _nothing(content, "folder")
    counts = [_frames(found[name]) for name in found if suffix_of(name) in TIFF_SUFFIXES]
    if sum(counts) > len(counts):
        notes += (f"{len(counts)} TIFF files hold {sum(counts)} images",)
    items = [Item(one_line(found[name]), found[name]) for name in sorted(found)]
    return Source(len(found) - len(counts) + sum(counts), items, notes)


def _frames(path: Path) -> int:
    """Images in a TIFF file; 1 where that is unknown; reading it will say why."""
    if not path.is_file():
        return 1
    try:
        with path.open("rb") as file:
            if not is_tiff(file.read(4)):
                return 1
            file.seek(0)
            return sum(page.frames for page in read_pages(file))
    except (OSError, ValueError):
        return 1


def _shards(folder: Path) -> Source:
    """All Parquet files in a folder and its subfolders, sorted by their relative names."""
    content = list_folder(folder, PARQUET_SUFFIXES)
    if not content.taken:
        raise _nothing(content, "parquet")
    paths = [content.taken[name] for name in sorted(content.taken)]
    count = sum(map(count_rows, paths))
    rows = _Items(lambda: chain.from_iterable(map(_rows, paths)))
    return Source(count, rows, content.notes)


def _rows(path: Path) -> Iterator[Item]:
    """The images of a Parquet file."""
    return (Item(f"{path}, row {i}", content) for i, content in enumerate(read_rows(path)))


def _torchvision(path: Path, name: str) -> Source:
    """A set of torchvision, fetched into ``path`` unless it is there."""
    pickled = path / "FashionMNIST" / "processed"
    if name == "fashion-mnist" and pickled.exists():
        msg = (
            f"{pickled} is of an old torchvision, which pickled; it would be read instead "
            "of the images beside it: delete that folder"
        )
        raise DataError(msg)
    try:
        dataset = _load_torchvision(path, name)
    except ModuleNotFoundError as error:
        msg = (
            f"{name}: the package {error.name} is missing. Install it: pip install 'dsd[features]'"
        )
        raise DataError(msg) from error
    # torchvision lets through whatever its download tools raise.
    except Exception as error:
        reason = one_line(" ".join(str(error).split()))
        msg = (
            f"torchvision's {name} is not in {path} and cannot be downloaded ({reason}): "
            "connect to the network once, or copy torchvision's files there"
        )
        raise DataError(msg) from error
    if name == "celeba":
        folder = path / dataset.base_folder / "img_align_celeba"
        items = [Item(str(folder / file), folder / file) for file in dataset.filename]
        return Source(len(items), items, square=True)
    pixels = np.asarray(dataset.data)
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4}:
        msg = f"torchvision's files of {name} in {path} hold no pictures: delete them"
        raise DataError(msg)
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    items = [Item(f"{name}, image {i}", image) for i, image in enumerate(planes)]
    return Source(len(items), items)


def _load_torchvision(path: Path, name: str) -> Any:  # noqa: ANN401 - torchvision is untyped
    """The training part of a set."""
    # Importing torchvision takes a second that the other sources need not pay.
    from torchvision import datasets

    path.mkdir(parents=True, exist_ok=True)
    part = {"split": "train"} if name == "celeba" else {"train": True}
    return getattr(datasets, TORCHVISION[name])(path, download=True, **part)


def _kind(shape: tuple[int, ...]) -> str:
    """Size and channels as a person would say them."""
    channels, height, width = shape
    return f"{width} x {height} {'grey' if channels == 1 else 'RGB'}"


def _central_square(pixels: Planes) -> UInt8[np.ndarray, " c s s"]:
    """The largest square around the centre."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[:, top : top + side, left : left + side]


def _by_kind(kinds: Counter[str]) -> str:
    """Numbers of images by kind, the largest first."""
    parts = [f"{count} of {kind}" for kind, count in kinds.most_common(_KINDS)]
    rest = len(kinds) - len(parts)
    return ", ".join(parts) + (f" and those of {rest} further kinds" if rest else "")


@final
@dataclass(frozen=True)
class _Pixels:
    """An image that needs no decoding, like a picture file of one picture."""

    pixels: Planes
    count: int = 1

    def read(self, _: int) -> tuple[Planes, Encoding]:
        """The pixels and that they are just these."""
        return self.pixels, Encoding("pixels", "none")


class _Image(NamedTuple):
    """One decoded image, its name and how it was encoded."""

    name: str
    pixels: Planes
    encoding: Encoding


def _decoded(
    items: Iterable[Item], refuse: Callable[[Refused], None], digest: Callable[[bytes], None]
) -> Iterator[_Image]:
    """All images that can be decoded.

    Args:
        items: Where they are.
        refuse: Called for each that cannot.
        digest: Called with the bytes of each item.
    """
    for item in items:
        try:
            content = item.load()
            data = content if isinstance(content, bytes) else content.tobytes()
            digest(len(data).to_bytes(8, "little") + data)
            file = PictureFile(content) if isinstance(content, bytes) else _Pixels(content)
        except ValueError as error:
            refuse(Refused(item.name, str(error)))
            continue
        for number in range(file.count):
            name = item.name if file.count == 1 else f"{item.name}, frame {number}"
            try:
                pixels, encoding = file.read(number)
            except ValueError as error:
                refuse(Refused(name, str(error)))
                continue
            yield _Image(name, pixels, encoding)


@final
class Reader:
    """Decodes a source, once, and remembers what happened.

    Attributes:
        refused: Images that were skipped, complete when all blocks are read.
        count: Images used so far.
        encodings: How the images used so far were encoded.
        averaged: Pixels in a row of noisy images that become one; None where they are kept.
    """

    def __init__(
        self,
        source: Source,
        *,
        pad: int,
        resolution: int | None,
        on_error: Literal["raise", "skip"],
        max_images: int | None,
        noisy: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            source: The images.
            pad: Black pixels around each.
            resolution: Height and width to average them down to.
            on_error: What becomes of an image that is broken or of another size or colour.
            max_images: Usable images to read.
            noisy: Whether their noise must stay what it is; what would change it is refused.
        """
        self.refused: list[Refused] = []
        self.count = 0
        self.encodings: Counter[Encoding] = Counter()
        self.averaged: int | None = None
        self._source = source
        self._pad = pad
        self._resolution = resolution
        self._on_error = on_error
        self._max_images = max_images
        self._noisy = noisy
        self._digest = hashlib.sha256()
        self._shape: tuple[int, ...] | None = None
        self._others: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Images to come at most."""
        return min(self._source.count, self._max_images or self._source.count)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the source's bytes, in order, as far as they were read."""
        return self._digest.hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """Short sentences on what was skipped by kind, and on what was done to noise before."""
        lines = []
        if self._others and self._shape is not None:
            lines.append(
                f"kept images of {_kind(self._shape)}, the most common kind (of up to {COUNTED} "
                f"that were counted); skipped {_by_kind(self._others)}"
            )
        lossy = {one.name: n for one, n in self.encodings.items() if one.harm == "lossy"}
        if self._noisy and lossy:
            lines.append(
                f"{sum(lossy.values())} of {self.count} noisy images are {' or '.join(lossy)}: "
                "lossy compression removes and correlates noise, so that no level describes it; "
                "use the originals"
            )
        return tuple(lines)

    def blocks(self) -> Iterator[UInt8[np.ndarray, " n c h w"]]:
        """All usable images, brought to one size, some at a time.

        Raises:
            DataError: An image is broken or of another kind than the others (unless these are
                skipped), none is usable, or the size does not allow the resolution.
        """
        block: list[Planes] = []
        for pixels in self._usable():
            block.append(pixels)
            if len(block) * pixels.size >= BLOCK_BYTES:
                yield self._resized(np.stack(block))
                block = []
        if block:
            yield self._resized(np.stack(block))
        if self.count == 0:
            msg = f"none of {len(self.refused)} images is usable; the first: {self._complaint()}"
            raise DataError(msg)

    def _usable(self) -> Iterator[Planes]:
        """Decoded images of one kind, the others refused or noted."""
        if self._on_error == "skip":
            kinds, _ = self._survey()
            self._shape = max(kinds, key=lambda shape: len(kinds[shape]), default=None)
        for image in self._images(self._source.items, self._refuse, self._digest.update):
            if self._is_kept(image):
                self.count += 1
                self.encodings[image.encoding] += 1
                yield image.pixels
            if self.count == self._max_images:
                return

    def _images(
        self,
        items: Iterable[Item],
        refuse: Callable[[Refused], None],
        digest: Callable[[bytes], None],
    ) -> Iterator[_Image]:
        """Decoded images whose noise, if they are noisy, is still there."""
        for image in _decoded(items, refuse, digest):
            if self._noisy and image.encoding.harm == "reduced":
                reason = (
                    f"is {image.encoding.name}, to whose few levels its noise was rounded; use "
                    "the original of 8 bits"
                )
                refuse(Refused(image.name, reason))
            elif self._source.square:
                yield image._replace(pixels=_central_square(image.pixels))
            else:
                yield image

    def _survey(self) -> tuple[dict[tuple[int, ...], list[str]], list[Refused]]:
        """What the first images are: names of the usable ones by shape, and the others."""
        kinds: dict[tuple[int, ...], list[str]] = {}
        refused: list[Refused] = []
        read: Counter[str] = Counter()
        some = islice(self._source.items, COUNTED)
        items = takewhile(lambda _: read["bytes"] < COUNTED_BYTES, some)
        images = self._images(items, refused.append, lambda data: read.update(bytes=len(data)))
        for image in islice(images, min(COUNTED, self._max_images or COUNTED)):
            kinds.setdefault(image.pixels.shape, []).append(image.name)
        return kinds, refused

    def _is_kept(self, image: _Image) -> bool:
        """Whether an image is of the kind that is kept; else refuses or notes it."""
        shape = image.pixels.shape
        if self.count == 0 and self._shape in {None, shape}:
            self._shape = shape
            self._check_resolution(image)
        if shape == self._shape:
            return True
        if self._on_error == "raise":
            raise DataError(self._mixture(image))
        kept = _kind(self._shape or shape)
        self.refused.append(Refused(image.name, f"is {_kind(shape)}, and {kept} are kept"))
        self._others[_kind(shape)] += 1
        return False

    def _refuse(self, refused: Refused) -> None:
        self.refused.append(refused)
        if self._on_error == "skip":
            return
        kinds, others = self._survey()
        usable = sum(map(len, kinds.values()))
        if not usable:
            msg = (
                f"none of {self._of(len(others))} images is usable; the first: {self._complaint()}"
            )
            raise DataError(msg)
        of = self._of(usable + len(others))
        more = f"; {len(others) - 1} more of {of} cannot be used"
        msg = (
            f"{self._complaint()}{more if len(others) > 1 else ''}; repair or remove "
            f"{'them' if len(others) > 1 else 'it'}, or set data.on_error to skip"
        )
        raise DataError(msg)

    def _of(self, count: int) -> str:
        """A number of images that were looked at, in words."""
        return f"{count}" if count >= self.total else f"the first {count}"

    def _complaint(self) -> str:
        return f"{self.refused[0].name} {self.refused[0].reason}" if self.refused else "no image"

    def _mixture(self, odd: _Image) -> str:
        """What images of several kinds there are, ``odd`` among them."""
        kinds, _ = self._survey()
        kinds.setdefault(odd.pixels.shape, [odd.name])
        largest = sorted(kinds, key=lambda shape: -len(kinds[shape]))
        parts = [f"{len(kinds[largest[0]])} are {_kind(largest[0])}"]
        for shape in largest[1:_KINDS]:
            parts.append(f"{len(kinds[shape])} are {_kind(shape)} (the first: {kinds[shape][0]})")
        if len(largest) > _KINDS:
            parts.append(f"others are of {len(largest) - _KINDS} further kinds")
        count = sum(map(len, kinds.values()))
        return (
            f"images differ: of {self._of(count)}, {', '.join(parts)}; bring all to one size and "
            "one kind of colour, or set data.on_error to skip to leave out all but the most "
            "common kind"
        )

    def _check_resolution(self, image: _Image) -> None:
        height, width = image.pixels.shape[1:]
        padded = width + 2 * self._pad
        if self._resolution is None:
            return
        if height != width:
            msg = (
                f"{image.name} is {_kind(image.pixels.shape)}, not square as data.resolution and "
                "the networks need: crop all images to squares"
            )
            raise DataError(msg)
        if self._resolution > padded:
            msg = (
                f"data.resolution is {self._resolution}, but images of {width} pixels with "
                f"data.pad {self._pad} have only {padded}: lower it"
                f"{'' if self._noisy else ', or pad more'}"
            )
            raise DataError(msg)
        if self._noisy and self._resolution < padded:
            self._check_averaging(padded)

    def _check_averaging(self, size: int) -> None:
        """Note how many pixels of noisy images become one; parts of pixels are refused."""
        resolution = self._resolution or size
        if size % resolution:
            divisors = [str(size // k) for k in range(1, size // 4 + 1) if size % k == 0]
            msg = (
                f"data.resolution is {resolution}, no divisor of the {size} pixels of noisy "
                "images: averages over parts of pixels correlate the noise; set it to one of "
                f"{', '.join(divisors)}, or to null to keep the pixels"
            )
            raise DataError(msg)
        self.averaged = size // resolution

    def _resized(self, pixels: UInt8[np.ndarray, " n c h w"]) -> UInt8[np.ndarray, " n c h2 w2"]:
        border = (self._pad, self._pad)
        padded = np.pad(pixels, ((0, 0), (0, 0), border, border))
        if self._resolution is None or self._resolution == padded.shape[-1]:
            return padded
        return area_average(padded, self._resolution)
