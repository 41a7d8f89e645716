"""Files that claim what is not so."""

import struct
import zlib

from tiny_model import save_tiny_generator as model

__all__ = ["chunk", "model", "raw_png"]


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def raw_png(width, height, rows, *, depth=8, colour=0, more=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
