"""Zarr arrays in a folder, of versions 2 and 3; of OME-Zarr the full resolution."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore

from dsd.sources.formats.stack import Stack, UnusableError

__all__ = ["open_zarr"]

MAX_CHUNK = 2**30
"""Bytes of a chunk, which is unpacked as a whole."""

MAX_METADATA = 2**22

CODECS = frozenset(
    {"blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "bytes", "endian"}
    | {"fixedscaleoffset", "quantize", "bitround", "packbits", "crc32c", "crc32", "adler32"}
    | {"fletcher32", "transpose", "sharding_indexed", "pcodec", "astype"}
)
"""Codecs that only compute; others, such as ``pickle``, may do anything."""


@contextmanager
def open_zarr(path: Path, key: str | None) -> Iterator[Stack]:
    """Open the array ``key`` of a folder, the only one, or the full resolution of OME-Zarr.

    Raises:
        ValueError: There is no such array, there are several, or it is stored in a way that
            cannot be trusted.
    """
    place, axes = path, None
    if key is not None:
        place = path / key
        if ".." in Path(key).parts or not place.resolve().is_relative_to(path.resolve()):
            msg = f"does not hold {key}, which leads out of it; correct data.key"
            raise UnusableError(msg)
    elif not _is_array(path):
        place, axes = _only(path)
    _check_codecs(place)
    array = zarr.open_array(store=LocalStore(place, read_only=True), mode="r")
    if array.dtype.kind not in "buifc":
        msg = f"holds {array.dtype}, not numbers"
        raise UnusableError(msg)
    largest = getattr(array, "shards", None) or array.chunks
    if math.prod(largest) * array.dtype.itemsize > MAX_CHUNK:
        msg = f"has chunks of {largest} numbers; write it in smaller ones"
        raise UnusableError(msg)
    yield Stack(array, "Zarr array", axes=axes, chunk=array.chunks[0] if array.chunks else 1)


def _read(path: Path) -> dict[str, Any]:
    """A file of metadata; empty if there is none."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_METADATA:
        msg = f"has {path.name} of more than {MAX_METADATA} bytes"
        raise UnusableError(msg)
    document = json.loads(path.read_bytes())
    return document if isinstance(document, dict) else {}


def _is_array(path: Path) -> bool:
    return (path / ".zarray").is_file() or _read(path / "zarr.json").get("node_type") == "array"


def _only(path: Path) -> tuple[Path, str | None]:
    """The full resolution, or the only array below a group."""
    attributes = _read(path / "zarr.json").get("attributes") or _read(path / ".zattrs")
    scales = attributes.get("ome", attributes).get("multiscales")
    if scales:
        place = path / str(scales[0]["datasets"][0]["path"])
        if not place.resolve().is_relative_to(path.resolve()):
            msg = "names a full resolution that lies outside of it"
            raise UnusableError(msg)
        letters = [str(axis["name"] if isinstance(axis, dict) else axis)
                   for axis in scales[0].get("axes", ())]  # fmt: skip
        named = all(len(letter) == 1 for letter in letters)
        return place, "".join(letters).upper() if letters and named else None
    found = [file.parent for file in sorted(path.rglob(".zarray"))]
    found += [
        file.parent
        for file in sorted(path.rglob("zarr.json"))
        if _read(file).get("node_type") == "array"
    ]
    if len(found) != 1:
        names = ", ".join(one.relative_to(path).as_posix() for one in found[:8]) or "none"
        msg = f"holds {len(found)} arrays ({names}); set data.key to one of them"
        raise UnusableError(msg)
    return found[0], None


def _check_codecs(place: Path) -> None:
    old, new = _read(place / ".zarray"), _read(place / "zarr.json")
    if not old and not new:
        msg = f"holds no Zarr array at {place.name}; correct data.key"
        raise UnusableError(msg)
    entries = [
        *(old.get("filters") or ()),
        *([old["compressor"]] if old.get("compressor") else ()),
    ]
    names = [str(one.get("id")) for one in entries]
    names += [*_codecs(new.get("codecs") or ())]
    for name in names:
        if name.removeprefix("numcodecs.") not in CODECS:
            msg = f"is stored with the codec {name}, which is not read; write it with another one"
            raise UnusableError(msg)


def _codecs(entries: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    for one in entries:
        yield str(one.get("name"))
        inside = one.get("configuration") or {}
        yield from _codecs(inside.get("codecs") or ())
        yield from _codecs(inside.get("index_codecs") or ())
