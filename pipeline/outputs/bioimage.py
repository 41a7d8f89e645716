"""The teacher as a package of the BioImage Model Zoo, for Fiji, ilastik, napari and deepImageJ.

Tiles have the size that the network was trained on; a halo of half the overlap is cut off.
"""

import io
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from dsd.utils.errors import DataError, ParamsError
from dsd.utils.files import published
from dsd.utils.images import visible
from dsd.utils.intensity import Intensity
from pipeline.outputs.export import Exported, onnx_bytes, torchscript_bytes
from pipeline.runtime.progress import say

__all__ = ["write_package"]

_CITATIONS = (
    ("Denoising Score Distillation", "10.48550/arXiv.2503.07578"),
    ("Consistent Diffusion Meets Tweedie", "10.48550/arXiv.2404.10177"),
)

_README = """# Denoiser learned from noisy images alone

It estimates E[x0 | y] at the noise level of the data that it was trained on ({sigma:.4g} in raw
units). Input and output are in the raw units of these data ({dtype} numbers, mostly {low:g} to
{high:g}). Pictures of other units, another noise level or of other things will come out wrong.
Compare some results with repeated or longer exposures before you rely on them.

Tiles are {height} x {width} pixels with a halo of {halo}.
"""


def write_package(model: Exported, out: Path, *, author: str | None, license_id: str) -> None:
    """Write the package as one ZIP file, which bioimageio's own test accepts.

    Raises:
        DataError: The model is a generator, has a camera's map, or fails the test.
        ModuleNotFoundError: A package is missing.
        ParamsError: The author or the licence is not known.
    """
    import bioimageio.spec
    from bioimageio.spec.model import v0_5

    if model.sigma is None or out.suffix != ".zip":
        msg = "--format bioimageio: it needs a teacher and a file .zip. Name them"
        raise DataError(f"{msg} with --model and --out")
    if model.intensity.camera is not None:
        msg = "--format bioimageio: a package holds no camera's transform. Use --format onnx"
        raise DataError(msg)
    name = author or _git_name()
    with TemporaryDirectory(prefix="dsd-export-") as place:
        folder = Path(place)
        description = _description(v0_5, model, folder, name, license_id)
        package = folder / "package.zip"
        bioimageio.spec.save_bioimageio_package(description, output_path=package)
        _test(package)
        with published(out) as file:
            file.write(package.read_bytes())


def _git_name() -> str:
    found = subprocess.run(
        ["git", "config", "user.name"], capture_output=True, text=True, check=False
    )
    if name := found.stdout.strip():
        return name
    msg = "--author: git knows no name. Give one, which the package names as its author"
    raise ParamsError(msg)


def _description(v0_5, model: Exported, folder: Path, author: str, license_id: str):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    import onnx

    (channels, height, width), intensity = model.shape, model.intensity
    tile = model.example[:1]
    with torch.no_grad():
        clean = model.network(tile)
    np.save(folder / "test_input.npy", tile.numpy())
    np.save(folder / "test_output.npy", clean.numpy())
    _cover(tile, clean, intensity, folder / "cover.png")
    halo = (model.overlap + 1) // 2
    raw_sigma = (model.sigma or 0.0) / intensity.scale
    text = _README.format(
        **intensity.model_dump(), sigma=raw_sigma, height=height, width=width, halo=halo
    )
    (folder / "README.md").write_text(text)
    content = onnx_bytes(model)
    (folder / "weights.onnx").write_bytes(content)
    (folder / "weights.pt").write_bytes(torchscript_bytes(model))
    opset = next(
        one.version for one in onnx.load(io.BytesIO(content)).opset_import if not one.domain
    )
    names = [v0_5.Identifier(f"channel{number}") for number in range(channels)]
    by = [v0_5.Author(name=author)]
    unit = v0_5.IntervalOrRatioDataDescr(type="float32", unit="arbitrary unit")

    def reference(axis: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return v0_5.SizeReference(tensor_id=v0_5.TensorId("noisy"), axis_id=v0_5.AxisId(axis))

    inputs = v0_5.InputTensorDescr(
        id=v0_5.TensorId("noisy"),
        description="Noisy picture in the raw units of the data that were learned from",
        axes=[
            v0_5.BatchAxis(),
            v0_5.ChannelAxis(channel_names=names),
            v0_5.SpaceInputAxis(id=v0_5.AxisId("y"), size=height),
            v0_5.SpaceInputAxis(id=v0_5.AxisId("x"), size=width),
        ],
        data=unit,
        test_tensor=v0_5.FileDescr(source=folder / "test_input.npy"),
    )
    outputs = v0_5.OutputTensorDescr(
        id=v0_5.TensorId("denoised"),
        description="Estimate of the picture without noise, in the same units",
        axes=[
            v0_5.BatchAxis(),
            v0_5.ChannelAxis(channel_names=names),
            v0_5.SpaceOutputAxisWithHalo(id=v0_5.AxisId("y"), size=reference("y"), halo=halo),
            v0_5.SpaceOutputAxisWithHalo(id=v0_5.AxisId("x"), size=reference("x"), halo=halo),
        ],
        data=unit,
        test_tensor=v0_5.FileDescr(source=folder / "test_output.npy"),
    )
    try:
        return v0_5.ModelDescr(
            name="Denoiser learned from noisy images alone",
            description="E[x0 | y] from a diffusion model that saw noisy images only",
            authors=by,
            cite=[v0_5.CiteEntry(text=text, doi=v0_5.Doi(doi)) for text, doi in _CITATIONS],
            license=v0_5.LicenseId(license_id),
            tags=["denoising", "image-restoration", "diffusion", "unet", "self-supervised"],
            documentation=v0_5.FileDescr(source=folder / "README.md"),
            covers=[v0_5.FileDescr(source=folder / "cover.png")],
            inputs=[inputs],
            outputs=[outputs],
            weights=v0_5.WeightsDescr(
                torchscript=v0_5.TorchscriptWeightsDescr(
                    source=folder / "weights.pt",
                    pytorch_version=v0_5.Version(torch.__version__.partition("+")[0]),
                ),
                onnx=v0_5.OnnxWeightsDescr(
                    source=folder / "weights.onnx", opset_version=opset, parent="torchscript"
                ),
            ),
        )
    except ValueError as error:
        lines = "; ".join(str(error).splitlines()[:3])
        msg = f"--format bioimageio: the description is refused ({lines}). Look at --license"
        raise ParamsError(msg) from error


def _cover(noisy: torch.Tensor, clean: torch.Tensor, intensity: Intensity, path: Path) -> None:
    """A picture of the test tile, its upper part noisy and its lower part denoised."""
    half = noisy.shape[-2] // 2
    both = torch.cat([noisy[..., :half, :], clean[..., half:, :]], dim=-2)
    share = (both - intensity.low) / (intensity.high - intensity.low)
    shown = visible((255 * share).clamp(0, 255).to(torch.uint8))
    pixels = shown[0].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).resize((512, 512), Image.Resampling.NEAREST).save(path)


def _test(package: Path) -> None:
    """Let bioimageio's own test run the package, with all its weights."""
    try:
        from bioimageio.core import test_description
    except ImportError:
        say("note: without the package bioimageio.core the package was checked by PyTorch alone; "
            "`bioimageio test FILE` runs all its programs")  # fmt: skip
        return

    summary = test_description(package)
    if summary.status != "passed":
        msg = f"bioimageio's test says {summary.status}: {summary.format()[-400:]}"
        raise DataError(msg)
