"""Models and training states on disk: safetensors with a JSON description, never pickle.

A model is a folder of ``weights.safetensors`` and ``model.json``. A training state is one
safetensors file that is replaced as a whole, so that an interruption while saving leaves the state
saved before.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, final

import torch
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn, optim

from dsd.config import Network, OperatorChoice, Positive, Section
from dsd.errors import DataError, ParamsError, one_line
from dsd.files import published
from dsd.generator import OneStepGenerator
from dsd.networks.unet import UNet
from dsd.operators import Operator, Shape, Views, image_shape
from dsd.precond import Denoiser
from dsd.seeds import derive_seed

__all__ = [
    "ModelSpec",
    "TrainingState",
    "build_denoiser",
    "load_denoiser",
    "load_generator",
    "read_info",
    "read_spec",
    "save_model",
]

_WEIGHTS, _SPEC = "weights.safetensors", "model.json"
_REMEDY = "run `dvc repro` (or `dvc checkout`) to bring it back"
_INFO = "info"
_DIGEST_BYTES = hashlib.sha256().digest_size

_UNFIT = (
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
"""What a description and tensors that do not go together raise somewhere in torch."""

Length = Annotated[int, Field(ge=1, le=2**13)]
"""Of one dimension of an image, far beyond any that a network here could take."""


class ModelSpec(Section):
    """What is needed to build a model before its weights are loaded."""

    network: Network
    operator: OperatorChoice
    """Through which the training data were observed."""

    shape: tuple[Length, Length, Length]
    """Channels, height and width of the model's images: a teacher's are observations, or would be
    if these were whole; a generator's are clean images."""

    sigma_init: Positive | None
    """Level at which a generator evaluates its denoiser; null for a teacher."""

    weights_sha256: str
    """Hash of the weights file."""

    def observed_through(self) -> Operator:
        """The operator, with the shapes of clean images and observations."""
        teacher = self.sigma_init is None
        shape = image_shape(self.operator, self.shape) if teacher else self.shape
        return Operator(self.operator, shape)


def build_denoiser(
    network: Network, shape: Shape, *, seed: int, views: Views | None = None
) -> Denoiser:
    """A denoiser with fresh weights, a function of ``seed`` alone.

    Args:
        network: Width and depth.
        shape: Channels, height and width of the images that it is trained on.
        seed: Of the weights and, with ``views``, of the denoiser's own view.
        views: Law of the views of the data; None where these show whole images.

    Raises:
        ValueError: The images do not fit the network.
    """
    channels, height, width = shape
    network.level_sizes(height, width)  # raises where they do not fit
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        raw = UNet(
            network, channels=channels, resolution=height, extra_channels=0 if views is None else 1
        )
    # A tenth faster on CPUs (docs/performance.md), and what GPUs' matrix units prefer.
    raw = raw.to(memory_format=torch.channels_last)
    if views is None:
        return Denoiser(raw, sigma_data=network.sigma_data)
    generator = torch.Generator().manual_seed(derive_seed(seed, "view"))
    view = views.draw_further(1, generator)
    return Denoiser(raw, sigma_data=network.sigma_data, views=views, view=view)


def save_model(
    folder: Path,
    denoiser: Denoiser,
    *,
    network: Network,
    operator: OperatorChoice,
    shape: Shape,
    sigma_init: float | None,
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


def load_denoiser(folder: Path | str, device: torch.device | str = "cpu") -> Denoiser:
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
        denoiser = build_denoiser(spec.network, shape, seed=0, views=views)
        denoiser.load_state_dict(weights)
    except (FileNotFoundError, IsADirectoryError, *_UNFIT) as error:
        msg = f"{path} cannot be loaded ({_first_line(error)}): {_REMEDY}"
        raise DataError(msg) from error
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
    blocks = spec.network.num_blocks * len(spec.network.channel_mult)
    fits = blocks <= len(weights)
    if fits:
        with torch.device("meta"):
            network = UNet(spec.network, channels=spec.shape[0], resolution=spec.shape[1])
        size = sum(weight.numel() for weight in network.parameters())
        fits = size <= sum(weight.numel() for weight in weights.values())
    if not fits:
        msg = f"{_SPEC} describes a larger network"
        raise ValueError(msg)


def _first_line(error: BaseException) -> str:
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
    return OneStepGenerator(denoiser, sigma_init=spec.sigma_init, shape=spec.shape).eval()


@final
class TrainingState:
    """Named modules and optimisers that are saved and restored together.

    Args:
        modules: Modules whose weights belong to the state.
        optimizers: Optimisers whose moments belong to the state.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, optim.Optimizer]
    ) -> None:
        self._modules = modules
        self._optimizers = optimizers

    def save(self, path: Path, info: Mapping[str, JsonValue]) -> None:
        """Replace the state at ``path`` by the present one, with ``info`` beside it."""
        tensors = {
            _INFO: torch.frombuffer(bytearray(json.dumps(info).encode()), dtype=torch.uint8)
        }
        for name, module in self._modules.items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}/{index}/{key}": value for key, value in moments.items()}
        data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        with published(path) as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)

    def load(self, path: Path) -> dict[str, JsonValue]:
        """Restore the state at ``path`` and return its ``info``.

        Raises:
            FileNotFoundError: There is no state.
            DataError: The file is damaged or belongs to other modules, of which some may have
                taken weights from it.
        """
        content = path.read_bytes()
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            msg = f"{path} is damaged: delete it, and the stage starts anew"
            raise DataError(msg)
        try:
            return self._restored(load(data))
        except _UNFIT as error:
            msg = (
                f"{path} is the state of another training ({_first_line(error)}): delete it, and "
                "the stage starts anew"
            )
            raise DataError(msg) from error

    def _restored(self, tensors: Mapping[str, Tensor]) -> dict[str, JsonValue]:
        """Give modules and optimisers their part; returns the ``info``."""
        for name, module in self._modules.items():
            module.load_state_dict(_under(name, tensors))
        for name, optimizer in self._optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            moments = _moments(_under(name, tensors))
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
            _match_layout(optimizer)
        return _info(tensors)


def read_info(path: Path) -> dict[str, JsonValue]:
    """The ``info`` beside the training state at ``path``, whatever training it is of.

    Raises:
        FileNotFoundError: There is no state.
        DataError: The file is damaged.
    """
    try:
        return _info(load(path.read_bytes()[_DIGEST_BYTES:]))
    except _UNFIT as error:
        msg = f"{path} is damaged ({_first_line(error)})"
        raise DataError(msg) from error


def _info(tensors: Mapping[str, Tensor]) -> dict[str, JsonValue]:
    info: dict[str, JsonValue] = json.loads(bytes(tensors[_INFO].numpy()))
    return info


def _under(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one module or optimiser, without its name."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _moments(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """An optimiser's state by parameter number, from names such as ``3/exp_avg``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    return state


def _match_layout(optimizer: optim.Optimizer) -> None:
    """Give moments the memory layout of their weights, which fused optimisers take for granted."""
    for weight, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == weight.shape:
                moments[key] = torch.empty_like(weight, requires_grad=False).copy_(value)
