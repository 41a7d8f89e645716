"""Typed parameters: one frozen section for each stage, no defaults, no file access.

The values live in ``params.yaml`` alone; this module says which keys exist, what they mean and
what they may be. Everything is in data units (images span [-1, 1]) and thousands of images (kimg)
unless a field says otherwise.
"""

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

__all__ = [
    "COLOUR_BLIND",
    "DROPOUT_LEVELS",
    "FEATURE_SPACES",
    "KNOWN_CHANNELS",
    "PARTIAL_OPERATORS",
    "TORCHSCRIPT_SUFFIXES",
    "BlurOperator",
    "Compute",
    "Consistency",
    "Corrupt",
    "Data",
    "Distill",
    "DownsampleOperator",
    "Evaluate",
    "FeatureSpace",
    "FourierOperator",
    "GeneratorNoise",
    "IdentityOperator",
    "MaskOperator",
    "Network",
    "Objective",
    "OperatorChoice",
    "Params",
    "Precision",
    "Pretrain",
    "Sampler",
    "Section",
    "Selection",
    "TeacherNoise",
    "Weighting",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rho = Annotated[float, Field(ge=0.5, le=1000, allow_inf_nan=False)]
TopLevel = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Objective = Literal["adjusted", "standard"]
Precision = Literal["float32", "tf32", "bfloat16"]
Weighting = Literal["edm", "ambient-omni", "inverse-variance"]

FEATURE_SPACES = ("fashion-classifier", "efficientnet-lite0", "inception")
"""Feature extractors that come with dsd."""

DROPOUT_LEVELS = 2**16
"""Values of the random numbers that decide what dropout keeps."""

COLOUR_BLIND = ("fashion-classifier",)
"""Those of them that see colour images in grey."""

KNOWN_CHANNELS = (1, 2, 3)
"""Channels of the images that they take: grey, complex and RGB."""

TORCHSCRIPT_SUFFIXES = (".ts", ".torchscript")


def _known_features(value: str) -> str:
    function = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
    own = value.endswith(TORCHSCRIPT_SUFFIXES) or re.fullmatch(function, value)
    if value not in FEATURE_SPACES and not own:
        msg = (
            f"{value!r} is no feature extractor: name one of {', '.join(FEATURE_SPACES)}, a "
            "function package.module:function, or a TorchScript file *.ts or *.torchscript"
        )
        raise ValueError(msg)
    return value


FeatureSpace = Annotated[str, AfterValidator(_known_features)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Data(Section):
    """Where the images come from and how they are brought to one layout."""

    source: Literal["parquet", "folder", "torchvision"]
    """Kind of source: Parquet files with an ``image`` column, a folder of image files, or a
    torchvision set."""

    path: Annotated[str, Field(min_length=1)]
    """The Parquet file or a folder of these, or the folder of image files; for torchvision the
    folder that holds (or will hold) its downloads."""

    name: Literal["cifar10", "fashion-mnist", "celeba"] | None
    """Which torchvision set (``source: torchvision`` only, else null)."""

    content: Literal["clean", "noisy"]
    """``clean`` images get noise in ``corrupt``; ``noisy`` ones are taken as observations of level
    corrupt.sigma."""

    pad: Annotated[int, Field(ge=0, le=64)]
    """Black border added on each side before resizing, in pixels."""

    resolution: Annotated[int, Field(ge=4, le=1024)] | None
    """Height and width after area averaging; null keeps the size as found."""

    on_broken: Literal["refuse", "skip"]
    """An image that cannot be used, or is of another size or colour than most, either refuses the
    whole source or is skipped and listed."""

    max_images: Count | None
    """Use only the first so many images; null uses all."""

    shard_size: Count
    """Images in one file of the prepared layout."""

    phase: Literal["none", "smooth"]
    """``smooth`` makes grey images complex, as in magnetic resonance: brightness in [0, 1] times a
    phase that varies slowly, in two channels (real, imaginary); ``none`` leaves them alone."""

    @model_validator(mode="after")
    def _name_goes_with_torchvision(self) -> "Data":
        if (self.source == "torchvision") != (self.name is not None):
            msg = (
                f"data.name is {self.name!r} while data.source is {self.source!r}: "
                "set a name for torchvision and null for the other sources"
            )
            raise ValueError(msg)
        return self


class IdentityOperator(Section):
    """The whole image is observed."""

    kind: Literal["identity"]


class MaskOperator(Section):
    """Random inpainting: each observation lacks pixels of its own, in all channels alike."""

    kind: Literal["mask"]

    keep: Annotated[float, Field(gt=0, lt=1)]
    """Probability that a pixel is observed."""

    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability that training hides an observed pixel (fourier: an observed column outside the
    centre) from the denoiser, which thereby learns to fill in; the reference uses 0.1."""


class BlurOperator(Section):
    """A Gaussian blur, the same for all images, with reflection at the borders."""

    kind: Literal["blur"]

    std: Annotated[float, Field(ge=0.2, allow_inf_nan=False)]
    """Standard deviation of the kernel, in pixels; the reference uses 2 for images of 64. Below
    0.2 a kernel would blur nothing."""

    radius: Annotated[int, Field(ge=1, le=64)]
    """The kernel covers 2 radius + 1 pixels a side; the reference uses 4."""


class DownsampleOperator(Section):
    """Smaller images: each pixel is the mean of a square of pixels."""

    kind: Literal["downsample"]

    factor: Annotated[int, Field(ge=2, le=16)]
    """Side of the square, a divisor of the images' height and width."""


class FourierOperator(Section):
    """Accelerated magnetic resonance: random columns of the complex image's Fourier transform."""

    kind: Literal["fourier"]

    acceleration: Annotated[float, Field(gt=1, le=64)]
    """Mean number of columns for each one that is observed."""

    center: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the columns, those of the lowest frequencies, that are always observed."""

    delta: Annotated[float, Field(gt=0, lt=1)]
    """As for a mask: the probability that training hides an observed column outside the
    centre."""


OperatorChoice = Annotated[
    IdentityOperator | MaskOperator | BlurOperator | DownsampleOperator | FourierOperator,
    Field(discriminator="kind"),
]


PARTIAL_OPERATORS = ("mask", "fourier")
"""Kinds of operators whose observations lack pixels or frequencies."""


def _auto_or_number(value: object) -> str:
    return "auto" if isinstance(value, str) else "number"


AutoLevel = Annotated[
    Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), Tag("number")]
    | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]

AutoCount = Annotated[
    Annotated[Count, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(_auto_or_number),
]


class Corrupt(Section):
    """The observation model y = A x0 + sigma * eps, one fixed draw for each image."""

    operator: OperatorChoice
    """What is lost of an image besides the noise: A, the identity in the paper."""

    sigma: AutoLevel
    """Noise level of the observations, in data units (grey levels divided by 127.5); the paper
    uses 0.1 to 0.4 on images in [-1, 1]. Of noisy images it is the level after data.resolution
    has averaged them, and is compared with the estimate. ``auto``: unknown, to be estimated from
    noisy images (data.content noisy)."""

    sigma_hat: AutoLevel | None
    """Noise level that everything after this stage assumes. null: ``sigma``; a number: to study a
    wrong one; ``auto``: the upper end of an interval estimated from the noisy images, which errs
    on the safe side."""

    trust_sigma: bool
    """Whether to train with the given level even where noisy images (data.content noisy) show
    another one. ``false``: a level that contradicts the estimate, or noise that is not white,
    stops the run."""

    clean_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of the training images that get no noise, chosen by the seed: to study what a few
    clean images add. Their level 0 is known to training. None of those held out."""

    num_heldout: Count
    """Noisy images kept out of training; Proximal FID is measured against them."""

    workers: Count
    """Processes that draw noise, at most one for each file of ``data.shard_size`` images; the
    bytes do not depend on it."""

    @model_validator(mode="after")
    def _an_estimate_needs_whole_images(self) -> "Corrupt":
        kind = self.operator.kind
        if "auto" in (self.sigma, self.sigma_hat) and kind in PARTIAL_OPERATORS:
            msg = (
                f"corrupt.operator.kind is {kind}, which leaves gaps in the images: their noise "
                "cannot be estimated, so give corrupt.sigma and corrupt.sigma_hat as numbers"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_a_given_level_is_trusted(self) -> "Corrupt":
        if self.trust_sigma and "auto" in (self.sigma, self.sigma_hat):
            name = "sigma" if self.sigma == "auto" else "sigma_hat"
            msg = (
                f"corrupt.trust_sigma is true while corrupt.{name} is auto, so that there is no "
                f"given level to trust: set it to false, or give corrupt.{name} as a number"
            )
            raise ValueError(msg)
        return self


class Network(Section):
    """The U-Net inside every denoiser."""

    patch: Literal[1, 2, 4]
    """Pixels a side that are folded into channels at the input (pixel-unshuffle); 1 keeps the
    image as it is."""

    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    """Channels at the finest level."""

    channel_mult: Annotated[list[Count], Field(min_length=1, max_length=6)]
    """Channels of each level as a multiple of ``width``, finest level first."""

    num_blocks: Count
    """Residual blocks at each level."""

    attention_resolutions: list[Count]
    """Feature-map sizes at which blocks have self-attention; each must be the size of a level.
    The middle of the network attends in any case."""

    dropout: Fraction
    """Dropout probability inside residual blocks; it is rounded to a multiple of 1/65536."""

    sigma_data: Positive
    """Standard deviation assumed by the EDM preconditioning."""

    @property
    def multiple(self) -> int:
        """The number of pixels that must divide the height and the width of an image."""
        return self.patch << len(self.channel_mult) - 1

    def level_sizes(self, height: int, width: int) -> list[int]:
        """Heights (and widths) of the feature maps, finest level first.

        Args:
            height: Height of the images that the network sees, in pixels.
            width: Their width, in pixels.

        Raises:
            ValueError: The network cannot take images of this size.
        """
        if height != width:
            msg = f"images of {width} x {height} pixels are not square, as the network needs"
            raise ValueError(msg)
        if height % self.multiple:
            msg = (
                f"images of {height} pixels do not fit the network: network.patch {self.patch} "
                f"and {len(self.channel_mult)} levels in network.channel_mult need a multiple of "
                f"{self.multiple}"
            )
            raise ValueError(msg)
        return [height // self.patch // 2**level for level in range(len(self.channel_mult))]

    @model_validator(mode="after")
    def _dropout_drops(self) -> "Network":
        if self.dropout > 0 and round(self.dropout * DROPOUT_LEVELS) == 0:
            msg = (
                f"dropout {self.dropout:g} is rounded to a multiple of 1/{DROPOUT_LEVELS}, so it "
                "would drop nothing; raise it, or set it to 0.0"
            )
            raise ValueError(msg)
        return self


def _check_warmup(warmup_kimg: float, kimg: float) -> None:
    if warmup_kimg > kimg:
        msg = (
            f"warmup_kimg {warmup_kimg:g} exceeds kimg {kimg:g}, so the step size would never "
            "reach learning_rate; lower it"
        )
        raise ValueError(msg)


class TeacherNoise(Section):
    """Law of the diffusion noise level while denoisers train."""

    sampler: Literal["added", "truncated", "clamped"]
    """``added``: the noise put on top of y is log-normal; ``truncated``: the total level is
    log-normal above sigma;
    ``clamped``: the reference code's maximum of log-normal and sigma, which wastes the clamped
    samples."""

    P_mean: Finite
    """Mean of the logarithm of the level."""

    P_std: Positive
    """Standard deviation of the logarithm of the level."""


class Consistency(Section):
    """Agreement of the teacher with its own reverse process, below the noise of the data."""

    weight: NonNegative
    """Coefficient beside the denoising loss; 0 leaves the term out. The paper's consistency
    baseline fine-tunes with 10."""

    batch_size: Count
    """Images of each step on which it is measured, at most ``pretrain.batch_size``."""

    num_steps: Count
    """Steps of the reverse process from the observation's level down to the pair of near levels
    that are compared, with one evaluation each; the pair takes three more."""


class Pretrain(Section):
    """Fitting the teacher denoiser to noisy images."""

    objective: Objective
    """``adjusted``: ambient Tweedie, learns E[x0 | x_t]; ``standard``: EDM on y, learns the noisy
    law."""

    weighting: Weighting
    """Weight of each noise level in the loss. All agree with the objective ``standard``."""

    noise: TeacherNoise

    consistency: Consistency

    batch_size: Count
    kimg: Positive
    """Length of training."""

    learning_rate: Positive
    """Peak Adam step size."""

    warmup_kimg: NonNegative
    """Linear warm-up of the step size, at most ``kimg``."""

    schedule: Literal["constant", "cosine"]
    """Step size after the warm-up."""

    ema_halflife_kimg: Positive
    """Half-life of the exponential moving average of the weights."""

    ema_rampup: Annotated[float, Field(gt=0, le=1)]
    """The half-life is at most this fraction of the images seen so far."""

    sample_every_kimg: Positive
    """Interval of sample grids; there is one at the end in any case."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Pretrain":
        _check_warmup(self.warmup_kimg, self.kimg)
        return self

    @model_validator(mode="after")
    def _consistency_fits(self) -> "Pretrain":
        if self.consistency.weight == 0:
            return self
        if self.objective == "standard":
            msg = (
                "consistency.weight is for objective: adjusted, because the standard objective "
                "trains at every level; set it to 0.0"
            )
            raise ValueError(msg)
        if self.consistency.batch_size > self.batch_size:
            msg = (
                f"consistency.batch_size {self.consistency.batch_size} exceeds batch_size "
                f"{self.batch_size}; lower it"
            )
            raise ValueError(msg)
        return self


class GeneratorNoise(Section):
    """Levels at which teacher and fake denoiser are compared: a Karras grid, uniform in index."""

    sigma_min: Positive
    sigma_max: TopLevel
    rho: Rho
    max_index: Annotated[float, Field(gt=0, le=1)]
    """Largest relative index from the low end: 0.8 of (0.002, 80, rho 7) reaches 24.4."""

    @model_validator(mode="after")
    def _ordered(self) -> "GeneratorNoise":
        if self.sigma_min >= self.sigma_max:
            msg = f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}"
            raise ValueError(msg)
        return self


class Selection(Section):
    """Choosing the generator by Proximal FID, without clean images."""

    features: FeatureSpace
    """Feature space of the Frechet distance; see ``evaluate.features``."""

    every_kimg: Positive
    """Interval of measurements; there is one at the beginning and one at the end in any case."""

    num_samples: Annotated[int, Field(ge=2)]
    """Generated images in each measurement, always from the same latents."""

    keep: Count
    """How many of the best generators to keep; the last one is kept besides."""


class Distill(Section):
    """Distilling the teacher into a one-step generator."""

    divergence: Literal["sid", "dmd", "sds"]
    """``sid``: Fisher divergence with SiD's gradient; ``dmd``: reverse Kullback-Leibler
    divergence; ``sds``: the teacher alone, without a fake denoiser, which seeks modes."""

    alpha: Annotated[float, Field(ge=0, le=2)]
    """SiD's alpha: 0.5 is half the gradient of the Fisher divergence, 1 to 1.2 are the useful
    values. Used with ``sid`` only."""

    sigma_init: Positive
    """Level tau of G(z) = D(tau * z; tau)."""

    pixel_range: Literal["clamped", "free"]
    """``clamped``: the generator trains on its images as saved, clamped to [-1, 1]; ``free``: as
    in the paper. Data that leave [-1, 1] without noise need ``free``."""

    noise: GeneratorNoise

    fake_noise: TeacherNoise
    """Law of the noise level while the fake denoiser trains; its objective is the teacher's. Not
    used with ``sds``."""

    batch_size: Count
    kimg: Positive
    """Length of distillation, counted in images generated for the generator's own step."""

    learning_rate: Positive
    """Peak Adam step size of the generator."""

    learning_rate_fake: Positive
    """Peak Adam step size of the fake denoiser. Not used with ``sds``."""

    warmup_kimg: NonNegative
    """Linear warm-up of both step sizes, at most ``kimg``."""

    schedule: Literal["constant", "cosine"]
    """Both step sizes after the warm-up."""

    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Adam's decay rates, for both networks."""

    fake_steps: Count
    """Steps of the fake denoiser for each step of the generator. Not used with ``sds``."""

    ema_halflife_kimg: Positive
    """Half-life of the exponential moving average of the generator's weights."""

    ema_rampup: Annotated[float, Field(gt=0, le=1)]
    """The half-life is at most this fraction of the images seen so far."""

    selection: Selection

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Distill":
        _check_warmup(self.warmup_kimg, self.kimg)
        return self


class Churn(Section):
    """Fresh noise before the steps that start within a range: EDM's stochastic sampler."""

    S_churn: NonNegative
    """Amount over all steps; a step raises its level at most by a factor sqrt(2). 0 adds none and
    makes sampling deterministic."""

    S_min: NonNegative
    """Lowest level at which noise is added; ``corrupt.sigma`` keeps it where the teacher was
    trained."""

    S_max: Positive
    """Highest level at which noise is added."""

    S_noise: Positive
    """Standard deviation of the new noise; 1 keeps the law of an exact denoiser."""

    @model_validator(mode="after")
    def _ordered(self) -> "Churn":
        if self.S_churn > 0 and self.S_min > self.S_max:
            msg = (
                f"S_min {self.S_min:g} is above S_max {self.S_max:g}, so no noise would be added; "
                "lower it, or set S_churn to 0.0"
            )
            raise ValueError(msg)
        return self


class Sampler(Section):
    """EDM's sampler for the teacher, on a Karras grid."""

    method: Literal["heun", "euler"]
    """``heun``: second order, two evaluations a step; ``euler``: first order, one."""

    num_steps: Annotated[int, Field(ge=2)]
    sigma_min: Positive
    sigma_max: TopLevel
    rho: Rho

    churn: Churn

    @model_validator(mode="after")
    def _ordered(self) -> "Sampler":
        if self.sigma_min >= self.sigma_max:
            msg = f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}"
            raise ValueError(msg)
        return self


class Evaluate(Section):
    """Measuring the generator and three ways to sample its teacher."""

    features: Annotated[
        list[FeatureSpace],
        Field(min_length=1),
    ]
    """Feature spaces, the headline one first: ``fashion-classifier``, ``efficientnet-lite0``,
    ``inception`` or your own, ``package.module:function`` or a TorchScript file (``*.ts``)."""

    inception_weights: str | None
    """TorchScript file of clean-fid's Inception; null lets clean-fid download it."""

    num_samples: Annotated[int, Field(ge=2)]
    """Images drawn from each model."""

    sampler: Sampler

    @model_validator(mode="after")
    def _each_space_once(self) -> "Evaluate":
        twice = sorted({name for name in self.features if self.features.count(name) > 1})
        if twice:
            msg = f"features names {', '.join(twice)} more than once; name each space once"
            raise ValueError(msg)
        return self

    @property
    def inception_weights_path(self) -> Path | None:
        """``inception_weights`` as a path."""
        return None if self.inception_weights is None else Path(self.inception_weights)


class Compute(Section):
    """How to compute. Results differ in the last digits, so that a change reruns stages."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "tf32", "bfloat16"]
    """Arithmetic inside the networks while training; weights, losses and metrics stay float32 or
    better. ``float32``: in full, on GPUs too; ``tf32``: products with factors of 10 bits, on
    NVIDIA GPUs since 2020; ``auto``: bfloat16 where the machine has units for it, else
    float32."""

    batch_per_device: AutoCount
    """Most images that a process takes through a network at once while training; a larger share of
    a batch is taken in parts, whose gradients are added up (docs/parallel.md). ``auto``: as many
    as fit into the memory that is free when the training begins (docs/memory.md)."""

    activation_checkpointing: bool
    """Whether to keep only the inputs of the network's blocks while training and compute the rest
    again for the gradient: much less memory, about a third more time, the same bits."""

    eval_batch_size: Count
    """Images in a batch when nothing is trained."""

    checkpoint_minutes: Positive
    """Interval of resumable states, in minutes."""

    strikes: Count
    """How often one run of a training may meet a number that is NaN or infinite: it goes back to
    the last good state, changes nothing and tries again, and the last time it stops."""


class Params(Section):
    """All of ``params.yaml``, in the order of the stages."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Root of every random draw."""

    data: Data
    corrupt: Corrupt
    network: Network
    pretrain: Pretrain
    distill: Distill
    evaluate: Evaluate
    compute: Compute

    @model_validator(mode="after")
    def _operator_fits_the_data(self) -> "Params":
        kind = self.corrupt.operator.kind
        if kind == "fourier" and self.data.phase == "none":
            msg = (
                "corrupt.operator.kind is fourier, which observes complex images: "
                "set data.phase to smooth"
            )
            raise ValueError(msg)
        if kind in {"mask", "fourier"} and self.data.content == "noisy":
            msg = (
                f"corrupt.operator.kind is {kind} while data.content is noisy: which coefficients "
                "of such images are missing is not known; start from clean images"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _phase_is_given_to_clean_images(self) -> "Params":
        if self.data.phase != "none" and self.data.content == "noisy":
            msg = (
                f"data.phase is {self.data.phase} while data.content is noisy: only clean images "
                "are made complex; set data.phase to none"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _levels_reach_above_the_data_noise(self) -> "Params":
        tops = {
            "evaluate.sampler.sigma_max": self.evaluate.sampler.sigma_max,
            "distill.noise.sigma_max": self.distill.noise.sigma_max,
        }
        levels = {
            "corrupt.sigma": self.corrupt.sigma,
            "corrupt.sigma_hat": self.corrupt.sigma_hat,
        }
        for (name, top), (of, level) in product(tops.items(), levels.items()):
            if isinstance(level, float) and top <= level:
                msg = f"{name} is {top:g} but must be above {of} = {level:g}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_clean_images_can_stay_clean(self) -> "Params":
        if self.corrupt.clean_fraction > 0 and self.data.content == "noisy":
            msg = (
                f"corrupt.clean_fraction is {self.corrupt.clean_fraction:g}, but data.content is "
                "noisy, so no image is clean: set it to 0"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _noise_to_be_added_has_a_level(self) -> "Params":
        if self.corrupt.sigma == "auto" and self.data.content == "clean":
            msg = (
                "corrupt.sigma is auto while data.content is clean: noise will be added, so give "
                "its level as a number; corrupt.sigma_hat: auto then tries the estimate on it"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _noisy_images_get_no_border(self) -> "Params":
        if self.data.content == "noisy" and self.data.pad > 0:
            msg = (
                f"data.pad is {self.data.pad} while data.content is noisy: a black border has no "
                "noise, which the model cannot know; set data.pad to 0"
            )
            raise ValueError(msg)
        return self
