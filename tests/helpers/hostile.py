"""Files that claim what is not so."""

import struct
import zlib

from dsd.model.checkpoint import build_denoiser, save_model
from dsd.model.config import UNetConfig
from dsd.operators.config import IdentityOperator

NETWORK = UNetConfig(
    kind="unet",
    patch_size=1, model_channels=8, channel_mult=[1], num_blocks=1, attention_resolutions=[],
    dropout=0.0, sigma_data=0.5,
)  # fmt: skip


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


def model(folder):
    denoiser = build_denoiser(NETWORK, (1, 8, 8), seed=0)
    identity = IdentityOperator(kind="identity")
    save_model(
        folder, denoiser, network=NETWORK, operator=identity, shape=(1, 8, 8), sigma_init=2.5
    )
