"""Models on disk: a folder of ``weights.safetensors`` and ``model.json``, never pickle."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dsd.model.config import NetworkConfig
from dsd.model.denoiser import AnyDenoiser, Denoiser, MaskedDenoiser
from dsd.model.generator import OneStepGenerator
from dsd.model.units import ImageUnits
from dsd.operators.config import OperatorChoice
from dsd.operators.gaussian_noise import WHITE, GaussianNoise
from dsd.operators.operator import Operator, Shape, Views, image_shape
from dsd.utils.config import Positive, Section
from dsd.utils.errors import DataError, ParamsError, one_line
from dsd.utils.files import published
from dsd.utils.random import derive_seed

__all__ = [
    "MISMATCH_ERRORS",
    "ModelSpec",
    "build_denoiser",
    "first_line",
    "load_denoiser",
    "load_generator",
    "read_spec",
    "save_model",
]

_WEIGHTS, _SPEC = "weights.safetensors", "model.json"
_REMEDY = "run `dvc repro` (or `dvc checkout`) to bring it back"

MISMATCH_ERRORS = (
    SafetensorError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    ParamsError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of torch and safetensors for tensors that do not match a description."""

Length = Annotated[int, Field(ge=1, le=2**13)]
"""Of one dimension of an image, far beyond any that a network here could take."""


class ModelSpec(Section):
    """What is needed to build a model before its weights are loaded."""

    network: NetworkConfig
    operator: OperatorChoice
    """Through which the training data were observed."""

    shape: tuple[Length, Length, Length]
    """Channels, height and width of the model's images: a teacher's are observations, or would be
    if these were whole; a generator's are clean images."""

    sigma_init: Positive | None
    """Level at which a generator evaluates its denoiser; null for a teacher."""

    weights_sha256: str
    """Hash of the weights file."""

    units: ImageUnits | None = None
    """What the numbers of its images mean; null where that is not known."""

    def observed_through(self) -> Operator:
        """The operator, with the shapes of clean images and observations."""
        teacher = self.sigma_init is None
        shape = image_shape(self.operator, self.shape) if teacher else self.shape
        return Operator(self.operator, shape)


def build_denoiser(
    network: NetworkConfig,
    shape: Shape,
    *,
    seed: int,
    views: Views | None = None,
    noise: GaussianNoise = WHITE,
) -> AnyDenoiser:
    """A denoiser with fresh weights, a function of ``seed`` alone.

    Args:
        network: Width and depth.
        shape: Channels, height and width of the images that it is trained on.
        seed: Of the weights and, with ``views``, of the denoiser's own view.
        views: Law of the views of the data; None where these show whole images.
        noise: Distribution of their noise; white where there are views.

    Raises:
        ValueError: The images do not fit the network, or the noise's kernel.
    """
    channels, height, width = shape
    network.check_images(height, width)
    if noise.kernel is not None and len(noise.kernel) != channels:
        msg = f"the noise has a kernel for {len(noise.kernel)} channels, the images {channels}"
        raise ValueError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        raw = network.build(
            channels=channels, resolution=height, extra_channels=0 if views is None else 1
        )
    # A tenth faster on CPUs (bench/README.md), and what GPUs' matrix units prefer.
    raw = raw.to(memory_format=torch.channels_last)
    if views is None:
        return Denoiser(raw, sigma_data=network.sigma_data, noise=noise)
    generator = torch.Generator().manual_seed(derive_seed(seed, "view"))
    view = views.draw_further(1, generator)
    return MaskedDenoiser(raw, sigma_data=network.sigma_data, views=views, view=view)


def save_model(
    folder: Path,
    denoiser: AnyDenoiser,
    *,
    network: NetworkConfig,
    operator: OperatorChoice,
    shape: Shape,
    sigma_init: float | None,
    units: ImageUnits | None = None,
) -> None:
    """Write ``denoiser`` as a model folder; the description comes last.

    The arguments are those of :class:`ModelSpec`.
    """
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()
    }
    weights = save(tensors)
    spec = ModelSpec(
        network=network,
        operator=operator,
        shape=shape,
        sigma_init=sigma_init,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        units=units,
    )
    with published(folder / _WEIGHTS) as file:
        file.write(weights)
    with published(folder / _SPEC) as file:
        file.write((spec.model_dump_json(indent=2) + "\n").encode())


def read_spec(folder: Path) -> ModelSpec:
    """The description of the model in ``folder``.

    Raises:
        DataError: It is missing or not a model description.
    """
    path = folder / _SPEC
    try:
        return ModelSpec.model_validate_json(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        msg = f"{path} is missing: {_REMEDY}"
    except ValidationError as error:
        msg = f"{path} does not describe a model ({error.error_count()} problems): {_REMEDY}"
    raise DataError(msg)


def load_denoiser(folder: Path | str, device: torch.device | str = "cpu") -> AnyDenoiser:
    """The denoiser of a model folder, in evaluation mode.

    Raises:
        DataError: A file is missing, damaged or does not fit the description.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    path = folder / _WEIGHTS
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != spec.weights_sha256:
            msg = f"{path} is not the file that {_SPEC} describes: {_REMEDY}"
            raise DataError(msg)
        weights = load(content)
        _check_numbers(weights)
        _check_size(spec, weights)
        operator = spec.observed_through()
        shape, views = operator.observed_shape, operator.views
        noise = GaussianNoise(weights.get("noise.kernel"))
        denoiser = build_denoiser(spec.network, shape, seed=0, views=views, noise=noise)
        denoiser.load_state_dict(weights)
    except (FileNotFoundError, IsADirectoryError, *MISMATCH_ERRORS) as error:
        msg = f"{path} cannot be loaded ({first_line(error)}): {_REMEDY}"
        raise DataError(msg) from error
    denoiser.units, denoiser.shape = spec.units, shape
    return denoiser.to(device).eval()


def _check_numbers(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which every image would be nonsense, and say nothing.

    Raises:
        ValueError: One is complex, NaN or infinite.
    """
    for name, weight in weights.items():
        if weight.is_complex() or not weight.isfinite().all():
            msg = f"{name} holds NaN, infinite or complex numbers"
            raise ValueError(msg)


def _check_size(spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    """Refuse a description of a larger network than the weights are of, before it is built.

    Raises:
        ValueError: It is of one; other errors where there cannot be such a network.
    """
    with torch.device("meta"):
        network = spec.network.build(channels=spec.shape[0], resolution=spec.shape[1])
    size = sum(weight.numel() for weight in network.parameters())
    if size > sum(weight.numel() for weight in weights.values()):
        msg = f"{_SPEC} describes a larger network"
        raise ValueError(msg)


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return one_line(str(error).strip().partition("\n")[0]) or type(error).__name__


def load_generator(folder: Path | str, device: torch.device | str = "cpu") -> OneStepGenerator:
    """The one-step generator of a model folder, in evaluation mode.

    Raises:
        DataError: A file is missing or damaged, or the model is a teacher.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if spec.sigma_init is None:
        msg = f"{folder} holds a teacher, not a generator: its {_SPEC} has no sigma_init"
        raise DataError(msg)
    denoiser = load_denoiser(folder, device)
    generator = OneStepGenerator(
        denoiser, sigma_init=spec.sigma_init, shape=spec.shape, units=spec.units
    )
    return generator.eval()
