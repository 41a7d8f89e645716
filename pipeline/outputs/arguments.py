"""Command lines of ``sample``, ``denoise`` and ``export``; imports nothing that takes time."""

import argparse
from pathlib import Path

__all__ = ["COMMANDS", "parser_of"]

COMMANDS = {
    "sample": "draw images of the generator into files: sample --count N --out PLACE",
    "denoise": "remove the noise of pictures of any size: denoise INPUT --out OUTPUT",
    "export": "save a model for other programs: export --format onnx --out FILE",
}
"""What each does, in a line."""

_MODEL = {
    "sample": "the generator: a folder, or an MLflow model such as "
    "models:/one-step-generator@champion (default: data/distill/generator)",
    "denoise": "folder of the teacher (default: data/pretrain)",
    "export": "folder of the model (default: data/distill/generator; data/pretrain for "
    "bioimageio)",
}


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command's arguments."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline {command}",
        description=COMMANDS[command].partition(":")[0].capitalize() + ".",
    )
    add = parser.add_argument
    if command == "denoise":
        add("input", type=Path, metavar="INPUT", help="a file of any format that is read, "
            "or a folder of such files")  # fmt: skip
    add("--out", type=Path, required=True, metavar="PLACE", help="file or folder to write")
    add("--model", metavar="MODEL", help=_MODEL[command])
    if command == "sample":
        add("--count", type=_count, required=True, metavar="N", help="images to draw")
        add("--seed", type=_natural, default=0, metavar="S", help="of the images (default: 0)")
        add("--format", choices=("png", "tiff", "npy", "same"), default="same",
            help="of the files in a folder; same: as the source (default)")  # fmt: skip
    elif command == "denoise":
        add("--sigma", type=float, metavar="S",
            help="noise level in raw units (default: that of the data)")  # fmt: skip
        add("--samples", type=_several, metavar="K",
            help="also draw K clean pictures of the posterior: PLACE-mean, PLACE-std")  # fmt: skip
        add("--seed", type=_natural, default=0, metavar="S", help="of the draws (default: 0)")
        add("--axes", metavar="AXES", help="of the arrays, such as TZCYX (default: as the file "
            "says)")  # fmt: skip
        add("--key", metavar="KEY", help="which array of a file that holds several")
    else:
        add("--format", choices=("onnx", "torchscript", "bioimageio"), required=True)
        add("--author", help="of the package, with bioimageio (default: the name in git)")
        add("--license", default="CC-BY-4.0", help="of the weights, with bioimageio, an SPDX name "
            "(default: CC-BY-4.0)")  # fmt: skip
    if command != "export":
        add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--overwrite", action="store_true", help="replace what is there")
    return parser


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _several(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} draws have no deviation; take at least 2")
    return number
