"""What the stages need of parameters and images together, known before any of them runs.

A stage that cannot work with some images would say so only when it begins, perhaps days after the
first one. All that follows from the parameters, the number of images and their shape is here, so
that a check, and the beginning of every stage, can refuse for all that come after. Nothing is
imported before it is needed: with the usual parameters a check does without torch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, final

from dsd.features.config import COLOUR_BLIND, FEATURE_SPACES, INCEPTION_SPACES, KNOWN_CHANNELS
from dsd.metrics.fewest import FRECHET, MANIFOLD
from dsd.model.config import TeacherNoise
from dsd.sources.config import Range
from dsd.utils.errors import ParamsError
from dsd.utils.intensity import PIXELS
from pipeline.params.model import Params

__all__ = ["Prepared", "Shape", "observed_shape", "remarks", "require"]

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width."""

SPECTRUM_SIDE = 24
"""Least side of images whose noise's spectrum can be estimated, in pixels."""

_WASTED = 0.99
"""Share of samples below the noise of the data from which on training by the rest is none."""

_TAIL = 30.0
"""Standard deviations above the mean beyond which a normal distribution has no numbers left."""


@final
@dataclass(frozen=True)
class Prepared:
    """What is known of the images that ``prepare`` writes."""

    count: int
    shape: Shape
    """Channels, height and width, in pixels."""

    level: float | None = None
    """Noise level that is assumed of them, in data units; None before ``corrupt`` has settled it,
    unless the parameters give it."""

    is_complex: bool = False
    """Whether channels are real and imaginary parts."""


def require(params: Params, images: Prepared) -> None:
    """Refuse parameters with which a stage would fail on such images, or ignore a value.

    Args:
        params: All parameters.
        images: What is known of the prepared images.

    Raises:
        ParamsError: One line for each problem names the key that helps.
    """
    found = list(_problems(params, images))
    if found:
        raise ParamsError("\n".join(found))


def _problems(params: Params, images: Prepared) -> Iterator[str]:
    try:
        observed = observed_shape(params, images.shape)
    except ParamsError as error:
        yield str(error)
        return
    level = images.level
    if level is None:
        level = _given_level(params)
    yield from _too_few(params, images, observed)
    yield from _unknown_noise(params, images, observed)
    yield from _network(params, images.shape, observed)
    yield from _features(params, images.shape[0], is_complex=images.is_complex)
    yield from _sampler(params, level)
    if level is not None:
        yield from _distributions(params, level)


def _given_level(params: Params) -> float | None:
    """The assumed level in data units, as far as the parameters tell."""
    corrupt, intensity = params.corrupt, params.data.intensity
    given = corrupt.sigma if corrupt.sigma_hat is None else corrupt.sigma_hat
    if given == "auto" or corrupt.unit == "data":
        return None if given == "auto" else given
    if intensity is None:
        return given * PIXELS.scale
    # Percentiles are known when the images were read.
    return given * 2 / (intensity.high - intensity.low) if isinstance(intensity, Range) else None


def observed_shape(params: Params, shape: Shape) -> Shape:
    """Shape of the observations; prepared images that are noisy are observations already.

    Raises:
        ParamsError: The operator does not fit the images.
    """
    choice = params.corrupt.operator
    if choice.kind == "identity":
        return shape
    from dsd.operators.operator import Operator, image_shape

    clean = image_shape(choice, shape) if params.data.content == "noisy" else shape
    return Operator(choice, clean).observed_shape


def _too_few(params: Params, images: Prepared, observed: Shape) -> Iterator[str]:
    """Fewer images than evaluation and the choice of the generator need, in any of their parts."""
    count, heldout = images.count, params.corrupt.num_heldout
    clean = params.data.content == "clean"
    # Only noisy images of their size are compared with clean ones.
    train = MANIFOLD if clean and observed == images.shape else FRECHET
    if clean and params.evaluate.num_samples < MANIFOLD:
        yield (
            f"evaluate.num_samples is {params.evaluate.num_samples}, but precision, recall, "
            f"density and coverage need {MANIFOLD} images of each model: raise it"
        )
    least = max(train + FRECHET, MANIFOLD if clean else 0)
    if count < least:
        limited = params.data.max_images == count
        remedy = "raise data.max_images" if limited else "use more images"
        yield (
            f"there are only {count} images, but {least} are needed: {train} to train on and to "
            f"compare with, {FRECHET} held out to choose the generator by; {remedy}"
        )
    elif count - heldout < train:
        most = count - train
        yield (
            f"corrupt.num_heldout is {heldout}, but there are only {count} images, and {train} "
            f"must be left to train on and to compare with: lower it to at most {most} (a tenth "
            f"would be {min(max(count // 10, FRECHET), most)}), or use more images"
        )
    elif heldout < FRECHET:
        yield (
            f"corrupt.num_heldout is {heldout}, but the distance that chooses the generator needs "
            f"{FRECHET} images held out: raise it (a tenth would be {max(count // 10, FRECHET)})"
        )
    elif 0 < (fraction := params.corrupt.clean_fraction) * (count - heldout) < 1:
        yield (
            f"corrupt.clean_fraction is {fraction:g}, which leaves none of {count - heldout} "
            f"training images clean: raise it to at least {1 / (count - heldout):.2g}, or set it "
            "to 0.0"
        )


def _unknown_noise(params: Params, images: Prepared, observed: Shape) -> Iterator[str]:
    """A level or spectrum that is to be estimated from too little."""
    if params.corrupt.spectrum == "auto" and min(observed[1:]) < SPECTRUM_SIDE:
        yield (
            f"corrupt.spectrum is auto, but images of {observed[2]} x {observed[1]} are too small "
            f"to estimate it: use {SPECTRUM_SIDE} x {SPECTRUM_SIDE} pixels, or name a .npy file "
            "with the noise's kernel or with frames of noise alone"
        )
    keys = [key for key in ("sigma", "sigma_hat") if getattr(params.corrupt, key) == "auto"]
    if not keys:
        return
    from dsd.corruption.noise_level import shortage

    problem = shortage(max(images.count - params.corrupt.num_heldout, 0), observed)
    if problem is not None:
        yield (
            f"corrupt.{keys[0]} is auto, but the noise level cannot be estimated from the "
            f"training images: {problem}, or give corrupt.{keys[0]} as a number"
        )


def _network(params: Params, shape: Shape, observed: Shape) -> Iterator[str]:
    """Images that the network cannot take."""
    _, height, width = observed
    try:
        params.network.check_images(height, width)
    except ValueError as error:
        yield ", or ".join([str(error), *_other_size(params, shape)])


def _other_size(params: Params, shape: Shape) -> Iterator[str]:
    """Other sizes than that of ``shape`` that fit the network."""
    _, *sides = shape
    operator, noisy = params.corrupt.operator, params.data.content == "noisy"
    factor = operator.factor if operator.kind == "downsample" and not noisy else 1
    fitting = [side - side % (params.network.multiple * factor) for side in sides]
    if fitting == sides:
        return
    if factor > 1:
        yield "lower corrupt.operator.factor"
    height, width = fitting
    if min(fitting) >= 4:
        # An average over pixels has less noise than they, which the given level would not be.
        crop = noisy or sides[0] != sides[1] or params.data.patches is not None
        size = f"crop the images to {width} x {height}"
        yield size if crop else f"set data.resolution to {height}"


def _features(params: Params, channels: int, *, is_complex: bool) -> Iterator[str]:
    """Feature spaces that do not see what the images show."""
    chosen = {
        "distill.selection.features": [params.distill.selection.features],
        "evaluate.features": params.evaluate.features,
    }
    for key, names in chosen.items():
        for name in names:
            known = channels in KNOWN_CHANNELS and (channels != 2 or is_complex)
            if name in FEATURE_SPACES and name != "teacher" and not known:
                problem = f"which knows no images of {channels} channels"
                others: tuple[str, ...] = ("teacher",)
            elif name in COLOUR_BLIND and channels == 3:
                problem = "which sees colour images in grey"
                others = tuple(one for one in FEATURE_SPACES if one not in COLOUR_BLIND)
            else:
                continue
            own = "an extractor of your own (package.module:function)"
            yield f"{key} names {name}, {problem}: choose {' or '.join((*others, own))}"


def _sampler(params: Params, level: float | None) -> Iterator[str]:
    """Levels of evaluation and distillation that leave the noise of the data out, or no churn."""
    tops = {
        "evaluate.sampler.sigma_max": params.evaluate.sampler.sigma_max,
        "distill.noise.sigma_max": params.distill.noise.sigma_max,
    }
    for key, top in tops.items():
        if level is not None and top <= level:
            yield f"{key} is {top:g}, but the data have noise of level {level:.4g}: raise it"
    churn = params.evaluate.sampler.churn
    if churn.S_churn == 0:
        return
    from dsd.model.samplers import grid_of

    if not any(churn.S_min <= start <= churn.S_max for start in grid_of(params.evaluate.sampler)):
        yield (
            f"evaluate.sampler.churn.S_churn is {churn.S_churn:g}, but no step of the sampler "
            f"starts between S_min {churn.S_min:g} and S_max {churn.S_max:g}: widen that range, "
            "or set S_churn to 0.0"
        )


def _distributions(params: Params, level: float) -> Iterator[str]:
    """Noise levels that lie below the noise of the data, so that nothing is learned."""
    if level == 0 or params.pretrain.objective == "standard":
        return
    used = {"pretrain.noise": params.pretrain.noise}
    if params.distill.needs_fake:
        used["distill.fake_noise"] = params.distill.fake_noise
    for key, noise in used.items():
        if _draws_nothing(noise, level):
            yield (
                f"{key}: {noise.distribution} levels of P_mean {noise.P_mean:g} and P_std "
                f"{noise.P_std:g} are nearly all below the noise of the data, {level:.4g}, "
                f"where nothing is learned: raise {key}.P_mean, or set {key}.distribution to added"
            )


def _draws_nothing(noise: TeacherNoise, level: float) -> bool:
    lowest = (math.log(level) - noise.P_mean) / noise.P_std
    if noise.distribution == "clamped":
        return math.erfc(-lowest / math.sqrt(2)) / 2 > _WASTED
    return noise.distribution == "truncated" and lowest > _TAIL


def remarks(params: Params, images: Prepared) -> Iterator[tuple[str, str]]:
    """Values that are allowed but have less effect than they seem to.

    Args:
        params: All parameters.
        images: What is known of the prepared images.

    Yields:
        The stage that reads the value, and what to know.
    """
    heldout = params.corrupt.num_heldout
    files = -(-max(images.count - heldout, heldout) // params.data.shard_size)
    if params.corrupt.workers > files:
        yield (
            "corrupt",
            f"corrupt.workers is {params.corrupt.workers}, but at most {files} can work: each "
            "writes a file of data.shard_size images",
        )
    for stage, key, every, kimg, what in (
        ("pretrain", "sample_every_kimg", params.pretrain.sample_every_kimg, params.pretrain.kimg,
         "there will be one picture, at the end"),
        ("distill", "selection.every_kimg", params.distill.selection.every_kimg,
         params.distill.kimg, "the generator is chosen from its beginning and its end alone"),
    ):  # fmt: skip
        if every > kimg:
            yield stage, f"{stage}.{key} {every:g} exceeds {stage}.kimg {kimg:g}: {what}"
    if params.evaluate.inception_weights is not None and not {*INCEPTION_SPACES} & {
        *params.evaluate.features,
        params.distill.selection.features,
    }:
        yield "evaluate", "evaluate.inception_weights is not used: no features are inception"
