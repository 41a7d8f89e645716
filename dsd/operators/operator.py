r"""Linear operators between a clean image and its observation.

    y = P_M (A x0 + sigma_y eps)

A is a known linear map, the same for all images (blur, downsampling). P_M = U^H M U keeps random
coefficients of a unitary transform U and loses the others with their noise: pixels (U the
identity), or columns of the Fourier transform of a complex image, whose real and imaginary parts
are its two channels. M, the *view* of an observation, differs from image to image; ``y`` is stored
as an image, zero where nothing was observed. An operator has a map or views, never both; the
identity has neither.

With a map, denoisers work on observations (A x0 is their clean image) and the generator on images.
With views, both work on images, and a denoiser sees the view of what it is given.

Reference:
    "Restoration Score Distillation" (arXiv:2505.13377), the successor of DSD, for the operators;
    Daras et al. 2023, Ambient Diffusion (arXiv:2305.19256), for views; Aali et al. 2024
    (arXiv:2403.08728) for those of Fourier coefficients.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import JsonValue, TypeAdapter
from torch import Tensor, nn

from dsd.operators.config import (
    BlurOperator,
    DownsampleOperator,
    FourierOperator,
    MaskOperator,
    OperatorChoice,
)
from dsd.utils.errors import ParamsError
from dsd.utils.random import derive_seed

__all__ = [
    "Images",
    "LinearMap",
    "Observations",
    "Operator",
    "Shape",
    "View",
    "Views",
    "gaps_of",
    "image_shape",
    "observed_counts",
]

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width."""

Images: TypeAlias = Float[Tensor, " b c h w"]
"""Images or what has their shape, in data units."""

Observations: TypeAlias = Float[Tensor, " b c v u"]
"""Observations or what has their shape, in data units."""

View: TypeAlias = Bool[Tensor, " b 1 #h w"]
"""What was observed of each image: pixels, or (with a height of 1) Fourier columns, zero frequency
first."""


@final
class LinearMap(nn.Module):
    """A x = L x R^T, channel by channel: maps that treat rows and columns alike and apart.

    Args:
        rows: L.
        columns: R.
    """

    def __init__(self, rows: Float64[Tensor, " v h"], columns: Float64[Tensor, " u w"]) -> None:
        super().__init__()
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Images) -> Observations:
        """A x, on the device and in the type of ``x``."""
        return self.rows.to(x) @ x @ self.columns.to(x).mT

    def adjoint(self, y: Observations) -> Images:
        """A^T y."""
        return self.rows.to(y).mT @ y @ self.columns.to(y)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of A x for ``x`` of ``shape``."""
        return shape[0], len(self.rows), len(self.columns)


@final
class Views(nn.Module):
    """The distribution of M, and the projection P_M.

    Each coefficient is observed with a probability of its own, independently of the others.

    Args:
        kind: ``pixels`` or ``columns``, what a view consists of.
        observed: Probability of observing each coefficient.
        kept: Probability that an observed coefficient survives further masking.
    """

    def __init__(
        self,
        kind: Literal["pixels", "columns"],
        observed: Float[Tensor, " 1 #h w"],
        kept: Float[Tensor, " 1 #h w"],
    ) -> None:
        super().__init__()
        self._kind = kind
        self.observed: Tensor
        self.kept: Tensor
        self.register_buffer("observed", observed, persistent=False)
        self.register_buffer("kept", kept, persistent=False)

    def of_images(self, seed: int, indices: Int64[np.ndarray, " b"]) -> View:
        """Views of the images with these numbers: functions of ``seed`` and number alone."""
        observed = self.observed.cpu()
        word, shape = derive_seed(seed, "views"), observed.shape
        keys = [np.array([word, index], np.uint64) for index in indices]
        uniform = [np.random.Generator(np.random.Philox(key=key)).random(shape) for key in keys]
        return torch.from_numpy(np.stack(uniform)) < observed

    def draw(self, count: int, generator: torch.Generator) -> View:
        """Fresh views, on the device of ``generator``."""
        return _chosen(self.observed, count, generator)

    def further(self, view: View, generator: torch.Generator) -> View:
        """``view`` with some of what was observed hidden, so that filling it in can be learned.

        Reference:
            Daras et al. 2023, Ambient Diffusion (arXiv:2305.19256).
        """
        return view & _chosen(self.kept, len(view), generator)

    def draw_further(self, count: int, generator: torch.Generator) -> View:
        """Fresh views after further masking: what denoisers are trained to be given."""
        return self.further(self.draw(count, generator), generator)

    def project(self, x: Images, view: View) -> Images:
        """P_M x: only what ``view`` shows of ``x``."""
        if self._kind == "pixels":
            return x * view
        # Along a column of the spectrum everything or nothing is observed, so that the transform
        # along columns and its inverse cancel.
        spectrum = torch.fft.fft(torch.complex(x[:, 0], x[:, 1]), norm="ortho") * view[:, 0]
        image = torch.fft.ifft(spectrum, norm="ortho")
        return torch.stack([image.real, image.imag], dim=1)

    def squares(self, x: Images) -> Float[Tensor, " b 1 #h w"]:
        """Squared length of what each entry of a view shows of ``x``."""
        if self._kind == "pixels":
            return x.square().sum(dim=1, keepdim=True)
        spectrum = torch.fft.fft(torch.complex(x[:, 0], x[:, 1]), norm="ortho")
        squares: Tensor = spectrum.abs().square().sum(dim=1)[:, None, None]
        return squares


def _chosen(probability: Tensor, count: int, generator: torch.Generator) -> View:
    device = generator.device
    uniform = torch.rand((count, *probability.shape), generator=generator, device=device)
    return uniform < probability.to(device)


def observed_counts(view: View, shape: Shape) -> Float[Tensor, " b"]:
    """How many of the numbers of an image of ``shape`` each view determines."""
    return view.expand(len(view), *shape).flatten(1).sum(1).float()


@final
class Operator(nn.Module):
    """How images are observed, apart from the noise.

    Attributes:
        choice: Which operator.
        shape: Of a clean image.
        observed_shape: Of an observation.
        map: A; None for the identity.
        views: The distribution of M; None where everything of A x is observed.

    Args:
        choice: Which operator.
        shape: Of a clean image.

    Raises:
        ParamsError: The operator does not fit images of this shape.
    """

    def __init__(self, choice: OperatorChoice, shape: Shape) -> None:
        super().__init__()
        self.choice = choice
        self.shape = shape
        self.map = _linear_map(choice, shape)
        self.views = _views(choice, shape)
        self.observed_shape = shape if self.map is None else self.map.output_shape(shape)

    @classmethod
    def of_store(cls, info: Mapping[str, JsonValue]) -> "Operator":
        """The operator through which the images of a store of ``corrupt`` were observed.

        Args:
            info: What the store's ``meta.json`` remembers.
        """
        choice: OperatorChoice = TypeAdapter(OperatorChoice).validate_python(info["operator"])
        channels, height, width = TypeAdapter(Shape).validate_python(info["shape"])
        return cls(choice, (channels, height, width))

    def stored_view(
        self,
        info: Mapping[str, JsonValue],
        indices: Int64[np.ndarray, " b"],
        observations: Observations,
    ) -> View | None:
        """Views of images in a store of ``corrupt``, drawn again as it drew them.

        Args:
            info: What the store's ``meta.json`` remembers.
            indices: Numbers of the images before the split.
            observations: The images; those that came with gaps show their views themselves.
        """
        if self.views is None:
            return None
        if info.get("missing"):
            return gaps_of(observations.cpu()).logical_not()
        return self.views.of_images(TypeAdapter(int).validate_python(info["seed"]), indices)

    def forward(self, x: Images, view: View | None) -> Observations:
        """P_M A x; ``view`` is for operators with views, else None."""
        return self.project(self.mapped(x), view)

    def adjoint(self, y: Observations, view: View | None) -> Images:
        """A^T P_M y."""
        y = self.project(y, view)
        return y if self.map is None else self.map.adjoint(y)

    def mapped(self, x: Images) -> Observations:
        """A x, the clean image of those who see observations."""
        return x if self.map is None else self.map.forward(x)

    def project(self, y: Images, view: View | None) -> Images:
        """P_M y; without views ``y`` itself."""
        if self.views is None:
            return y
        assert view is not None, "which coefficients were observed?"
        return self.views.project(y, view)


def gaps_of(observations: Observations) -> Bool[Tensor, " b 1 v u"]:
    """Pixels that measured images lack: exactly 0 in all channels, as ``prepare`` stores them."""
    return (observations == 0).all(dim=1, keepdim=True)


def image_shape(choice: OperatorChoice, observed_shape: Shape) -> Shape:
    """Shape of the clean images behind observations of ``observed_shape``."""
    factor = choice.factor if isinstance(choice, DownsampleOperator) else 1
    channels, height, width = observed_shape
    return channels, factor * height, factor * width


def _linear_map(choice: OperatorChoice, shape: Shape) -> LinearMap | None:
    _, height, width = shape
    if isinstance(choice, BlurOperator):
        return LinearMap(_blur_matrix(choice, height), _blur_matrix(choice, width))
    if isinstance(choice, DownsampleOperator):
        return LinearMap(_mean_matrix(choice, height), _mean_matrix(choice, width))
    return None


def _blur_matrix(choice: BlurOperator, size: int) -> Float64[Tensor, " n n"]:
    """Convolution with a Gaussian along one axis; pixels beyond the border are reflected ones."""
    if choice.radius >= size:
        msg = (
            f"corrupt.operator.radius is {choice.radius}, but images of {size} pixels a side "
            f"can be reflected by {size - 1} at most: lower it"
        )
        raise ParamsError(msg)
    offsets = torch.arange(-choice.radius, choice.radius + 1)
    kernel = (-(offsets.double() ** 2) / (2 * choice.std**2)).exp()
    last = size - 1
    sources = last - (last - (torch.arange(size)[:, None] + offsets).abs()).abs()
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, (kernel / kernel.sum()).expand(size, -1))


def _mean_matrix(choice: DownsampleOperator, size: int) -> Float64[Tensor, " v h"]:
    """Means of successive pixels along one axis."""
    if size % choice.factor:
        msg = (
            f"corrupt.operator.factor is {choice.factor}, which does not divide images of {size} "
            "pixels a side: choose a divisor, or another data.resolution"
        )
        raise ParamsError(msg)
    identity = torch.eye(size // choice.factor, dtype=torch.float64)
    return identity.repeat_interleave(choice.factor, dim=1) / choice.factor


def _views(choice: OperatorChoice, shape: Shape) -> Views | None:
    if isinstance(choice, MaskOperator):
        plane = (1, *shape[1:])
        return Views(
            "pixels",
            torch.full(plane, choice.keep_prob),
            torch.full(plane, 1 - choice.further_mask_prob),
        )
    if isinstance(choice, FourierOperator):
        return _column_views(choice, shape)
    return None


def _column_views(choice: FourierOperator, shape: Shape) -> Views:
    """Columns at random with a fully observed centre, as many as the acceleration allows."""
    channels, _, width = shape
    if channels != 2:
        msg = (
            f"corrupt.operator.kind is fourier, but images have {channels} channels, not 2 (real "
            "and imaginary part): set data.phase to smooth, or choose another operator"
        )
        raise ParamsError(msg)
    central = max(1, round(choice.center * width))
    others = width / choice.acceleration - central
    if others < 0:
        msg = (
            f"corrupt.operator.center observes {central} of {width} columns, more than 1 in "
            f"{choice.acceleration:g}: lower it, or the acceleration"
        )
        raise ParamsError(msg)
    # The middle is where the zero frequency lies before the shift, and the first place after it.
    in_center = torch.fft.ifftshift(_central(width, central))[None, None]
    observed = torch.where(in_center, 1.0, others / max(width - central, 1))
    return Views("columns", observed, torch.where(in_center, 1.0, 1 - choice.further_mask_prob))


def _central(width: int, count: int) -> Bool[Tensor, " w"]:
    """Which of ``width`` columns are the ``count`` in the middle."""
    first = width // 2 - count // 2
    column = torch.arange(width)
    return (column >= first) & (column < first + count)
