"""Command ``export``: a model as one file for other programs, checked against PyTorch.

``onnx`` and ``torchscript`` take a generator, or the teacher as a denoiser; ``bioimageio`` takes
the teacher (:mod:`pipeline.outputs.bioimage`).
"""

import io
import json
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsd.model.checkpoint import load_denoiser, load_generator, read_spec
from dsd.model.generator import make_latents
from dsd.model.pictures import PictureDenoiser, intensity_of
from dsd.operators.operator import Shape
from dsd.utils.errors import DataError, one_line
from dsd.utils.files import published
from dsd.utils.intensity import Intensity
from pipeline.outputs.models import model_folder, require_free
from pipeline.outputs.networks import ExportedDenoiser, ExportedGenerator, unit_of
from pipeline.runtime.progress import say
from pipeline.stage_io.paths import Paths

__all__ = ["Exported", "exported_model", "onnx_bytes", "run", "torchscript_bytes"]

_CLOSE = 1e-3
"""Largest difference to PyTorch, in standard deviations of the output."""


@final
@dataclass(frozen=True)
class Exported:
    """A model to be saved for other programs."""

    network: nn.Module
    example: Float[Tensor, " n c h w"]
    """Typical input."""

    intensity: Intensity
    shape: Shape
    input: str
    """What goes in, for people; likewise ``output``."""

    output: str
    sigma: float | None = None
    """Noise level of a denoiser in data units; None for a generator."""

    overlap: int = 0
    """Pixels that tiles of a denoiser share."""

    @property
    def about(self) -> dict[str, str]:
        """What other programs need to know, as JSON."""
        known = {
            "input": self.input,
            "output": self.output,
            "intensity": self.intensity.model_dump(),
            "shape": self.shape,
            "sigma": self.sigma,
        }
        return {name: json.dumps(value) for name, value in known.items()}


def run(arguments: Namespace, paths: Paths) -> None:
    """Write ``arguments.out``.

    Raises:
        DataError: The model or a package is missing, or the file computes something else.
    """
    out: Path = arguments.out
    require_free(out, overwrite=arguments.overwrite)
    if out.is_dir():
        msg = f"{one_line(out)}: it is a folder. Name a file"
        raise DataError(msg)
    package = arguments.format == "bioimageio"
    default = paths.artifact("pretrain") if package else paths.artifact("distill") / "generator"
    model = exported_model(model_folder(arguments.model, default, paths))
    try:
        if package:
            from pipeline.outputs.bioimage import write_package

            write_package(model, out, author=arguments.author, license_id=arguments.license)
        else:
            write = {"onnx": onnx_bytes, "torchscript": torchscript_bytes}[arguments.format]
            content = write(model)
            with published(out) as file:
                file.write(content)
    except ModuleNotFoundError as error:
        msg = (
            f"--format {arguments.format}: the package {error.name} is missing. "
            "Install what export needs: pip install 'dsd[export]'"
        )
        raise DataError(msg) from error
    size = out.stat().st_size / 1e6
    say(f"OK: {out}, {size:.1f} MB; it computes what PyTorch does")


def exported_model(folder: Path) -> Exported:
    """Load a generator, or a teacher as a denoiser at its own level.

    Raises:
        DataError: The folder holds no model, or its teacher cannot denoise alone.
    """
    spec = read_spec(folder)
    if spec.sigma_init is not None:
        generator = load_generator(folder)
        intensity = intensity_of(generator.denoiser)
        return Exported(
            ExportedGenerator(generator).eval().requires_grad_(requires_grad=False),
            make_latents(3, generator.shape, seed=0),
            intensity,
            generator.shape,
            input="latents [n, c, h, w], standard normal",
            output=f"images [n, c, h, w] in {unit_of(intensity)} units",
        )
    denoiser = load_denoiser(folder)
    pictures = PictureDenoiser(denoiser)
    intensity = intensity_of(denoiser)
    example = make_latents(3, spec.shape, seed=0) * pictures.sigma
    if intensity.camera is None:
        example = (example - intensity.offset) / intensity.scale
    return Exported(
        ExportedDenoiser(denoiser, pictures.sigma).eval().requires_grad_(requires_grad=False),
        example,
        intensity,
        spec.shape,
        input=f"noisy tiles [n, c, h, w] in {unit_of(intensity)} units",
        output="the same without noise, E[x0 | y]",
        sigma=pictures.sigma,
        overlap=pictures.overlap,
    )


def onnx_bytes(model: Exported) -> bytes:
    """Return the model as an ONNX file, whose ``metadata_props`` say what goes in and out.

    Raises:
        DataError: onnxruntime computes something else.
        ModuleNotFoundError: A package is missing.
    """
    import onnx
    import onnxruntime

    target = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        # torch's newer exporter takes half a minute for a file of twice the size.
        torch.onnx.export(
            model.network,
            (model.example,),
            target,  # type: ignore[arg-type]
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
        )
    proto = onnx.load_from_string(target.getvalue())
    onnx.helper.set_model_props(proto, model.about)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, len(model.example)):
        batch = model.example[:count]
        (found,) = session.run(None, {"input": batch.numpy()})
        _compare(model, batch, np.asarray(found), "onnxruntime")
    return content


def torchscript_bytes(model: Exported) -> bytes:
    """Return the model as a TorchScript file, with texts about it inside.

    Raises:
        DataError: It computes something else.
    """
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        traced = torch.jit.trace(model.network, (model.example[:2],), check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file, _extra_files=model.about)
        again = torch.jit.load(io.BytesIO(file.getvalue()))
        for count in (1, len(model.example)):
            batch = model.example[:count]
            _compare(model, batch, again(batch).numpy(), "TorchScript")
    return file.getvalue()


def _compare(model: Exported, batch: Tensor, found: np.ndarray, program: str) -> None:
    """Raise DataError unless another program's output is that of PyTorch."""
    with torch.no_grad():
        expected = model.network(batch).numpy()
    off = float(np.abs(found - expected).max() / expected.std())
    if not off < _CLOSE:
        msg = (
            f"{program} computes other images than PyTorch (by up to {off:.2g} standard "
            "deviations). Install the versions of requirements.lock"
        )
        raise DataError(msg)
