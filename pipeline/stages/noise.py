"""The noise level of stage ``corrupt``: given, estimated and checked against each other."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from dsd.corruption.config import Corrupt
from dsd.corruption.noise_kernel import read_kernel
from dsd.corruption.noise_kinds import NoiseKind, kinds_of_noise
from dsd.corruption.noise_level import (
    NEGLIGIBLE,
    Check,
    NoiseEstimate,
    NoNoiseError,
    choose_sample,
    estimate_noise,
    take_sample,
)
from dsd.corruption.noise_spectrum import SpectrumEstimate, estimate_spectrum
from dsd.corruption.writer import Noise, PlainKernel, split_heldout, write_noisy_store
from dsd.operators.config import PARTIAL_OPERATORS
from dsd.storage.image_store import ImageStore
from dsd.storage.shards import LEVELS, clear_store
from dsd.utils.errors import DataError
from dsd.utils.files import write_json
from dsd.utils.intensity import PIXELS
from pipeline.stage_io.log import StageLog
from pipeline.stage_io.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.model import Params

__all__ = ["correlation_of", "estimate_level", "settle_noise", "split_of", "summary_of"]

_NOT_OF_ONE_LEVEL = ("JPEG", "Poisson-Gaussian", "quantised")
"""Kinds of noise for which any level is silently wrong."""

_NOT_WHITE = ("white", "flat spectrum")
"""Checks that fail where the estimate is not the level of all the noise; the second one fails also
where texture is everywhere."""


def settle_noise(params: "Params", paths: Paths, found: ImageStore, log: StageLog) -> Noise:
    """Estimate the noise of some observations and decide which level is assumed of all.

    Args:
        params: All parameters.
        paths: ``data/corrupt/train`` holds these observations for a moment; the estimate goes to
            ``reports/corrupt/noise.json``.
        found: Clean images or observations.
        log: Hears about the estimate.

    Raises:
        DataError: The level is to be estimated but cannot be, or observations contradict the given
            level; the message says what to change.
    """
    corrupt = _in_data_units(params.corrupt, found)
    if found.intensity.camera is not None and corrupt.sigma == "auto":
        # What the transform was chosen to give; the estimate is compared with it.
        corrupt = corrupt.model_copy(update={"sigma": found.intensity.scale})
    sigma = corrupt.sigma
    noise = Noise(
        sigma=None if sigma == "auto" else sigma,
        assumed=0.0,
        seed=params.seed,
        add=found.meta.info.get("content") != "noisy",
        kernel=_given_kernel(params, paths, found),
    )
    if LEVELS in found.meta.info:
        return _known(paths, found, noise, log)
    spectrum = corrupt.spectrum
    estimate = _estimate_some(params, paths, found, noise)
    kernel = _estimated_kernel(estimate, log) if spectrum == "auto" else noise.kernel
    estimate = estimate.level if isinstance(estimate, SpectrumEstimate) else estimate
    noise = replace(noise, assumed=_assumed(corrupt, estimate), kernel=kernel)
    _report(paths, noise, estimate, len(found), log)
    # Images said to be clean may have steps coarser than what noise is left in them.
    said = noise.add or corrupt.trust_sigma or spectrum != "white" or noise.assumed == 0
    if not (said or isinstance(estimate, DataError)):
        _refuse_other_kinds(
            kinds_of_noise(take_sample(found, params.seed), estimate, found.intensity)
        )
    if "auto" in (corrupt.sigma, corrupt.sigma_hat):
        _refuse_failed_checks(estimate)
    if not (noise.add or corrupt.trust_sigma):
        _refuse_contradiction(corrupt, found, estimate)
    return noise


def _known(paths: Paths, found: ImageStore, noise: Noise, log: StageLog) -> Noise:
    """Noise whose level is known of each pixel; the highest stands for it where one is needed."""
    maps = found.level_maps
    assert maps is not None
    lowest = float(min(part.min() for part in maps.raw()))
    highest = float(max(part.max() for part in maps.raw()))
    report = {"sigma": None, "sigma_hat": highest, "lowest": lowest, "highest": highest}
    write_json(paths.report("corrupt") / "noise.json", report)
    log.say(f"noise levels of pixels, as data.variance says: {lowest:.4g} to {highest:.4g}")
    return replace(noise, assumed=highest)


def split_of(params: "Params", found: ImageStore) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on, and of those held out, by picture where they are patches.

    Raises:
        ParamsError: None would be left to train on.
    """
    pictures = found.meta.info.get("pictures")
    counts = None if pictures is None else TypeAdapter(list[int]).validate_python(pictures)
    return split_heldout(params.seed, len(found), params.corrupt.num_heldout, counts)


def _in_data_units(corrupt: Corrupt, found: ImageStore) -> Corrupt:
    """The section with levels in data units, whatever their unit was."""
    if corrupt.unit == "data":
        return corrupt
    scale = found.intensity.scale
    levels = {
        name: level * scale
        for name in ("sigma", "sigma_hat")
        if isinstance(level := getattr(corrupt, name), float)
    }
    return corrupt.model_copy(update={**levels, "unit": "data"})


def _estimate_some(
    params: "Params", paths: Paths, found: ImageStore, noise: Noise
) -> NoiseEstimate | SpectrumEstimate | DataError:
    """Observe as many training images as the estimate needs, and estimate; or the reason."""
    train, _ = split_of(params, found)
    chosen = choose_sample(len(train), found.shape, params.seed).numpy()
    folder = paths.artifact("corrupt") / "train"
    operator = params.corrupt.operator
    write_noisy_store(found.folder, folder, train[chosen], noise=noise, operator=operator)
    try:
        store = ImageStore.open(folder)
        if params.corrupt.spectrum != "white":
            return estimate_spectrum(take_sample(store, params.seed).numpy())
        return estimate_level(store, operator.kind, params.seed)
    except DataError as error:
        return error
    finally:
        # Nobody shall take these for the whole set, whatever happens next.
        clear_store(folder)


def _given_kernel(params: "Params", paths: Paths, found: ImageStore) -> PlainKernel | None:
    """The kernel in the file that ``corrupt.spectrum`` names; None if it names none.

    Raises:
        ParamsError: The file does not fit the images.
    """
    spectrum = params.corrupt.spectrum
    if spectrum in ("white", "auto"):
        return None
    kernel: PlainKernel = read_kernel(paths.root / spectrum, found.shape[0]).tolist()
    return kernel


def _estimated_kernel(
    estimate: NoiseEstimate | SpectrumEstimate | DataError, log: StageLog
) -> PlainKernel:
    """The kernel of the estimated spectrum.

    Raises:
        DataError: There is no estimate, or the noise is correlated beyond its reach.
    """
    if isinstance(estimate, DataError):
        raise estimate
    assert isinstance(estimate, SpectrumEstimate)
    for check in estimate.level.suspicious:
        msg = f"corrupt.spectrum is auto, but {check.text}"
        raise DataError(msg)
    log.say(f"the noise is correlated: neighbours by {estimate.neighbours}")
    kernel: PlainKernel = estimate.kernel.tolist()
    return kernel


def correlation_of(store: ImageStore, estimate: NoiseEstimate, seed: int) -> str | None:
    """How noise that is not white is correlated, and what to set; None where it is white."""
    if not any(check.name == "white" for check in estimate.suspicious):
        return None
    try:
        found = estimate_spectrum(take_sample(store, seed).numpy())
    except DataError as error:
        return f"correlated noise: {error}"
    level = f"{summary_of(found.level)} by it"
    for check in found.level.suspicious:
        return f"correlated noise: {check.text}"
    return f"correlated noise: neighbours by {found.neighbours}; {level}; corrupt.spectrum: auto"


def estimate_level(store: ImageStore, operator: str, seed: int) -> NoiseEstimate:
    """Estimate the noise level of stored observations.

    Raises:
        DataError: It cannot be estimated, in general or from these images.
    """
    if operator in PARTIAL_OPERATORS:
        msg = (
            "the noise level cannot be estimated: observations lack pixels or frequencies "
            f"(corrupt.operator.kind is {operator}); it has to be known"
        )
        raise DataError(msg)
    if store.meta.info.get("kernel") is not None:
        return estimate_spectrum(take_sample(store, seed).numpy()).level
    return estimate_noise(take_sample(store, seed))


def _assumed(corrupt: Corrupt, estimate: NoiseEstimate | DataError) -> float:
    """The level for all that comes after."""
    wanted = corrupt.sigma if corrupt.sigma_hat is None else corrupt.sigma_hat
    if wanted != "auto":
        return wanted
    if isinstance(estimate, DataError):
        msg = f"{estimate}; or set corrupt.sigma (corrupt.sigma_hat) to a number"
        raise DataError(msg) from estimate
    return estimate.recommended


def _refuse_failed_checks(estimate: NoiseEstimate | DataError) -> None:
    """Raise DataError if the estimate fails a check: it is no basis for training then."""
    if isinstance(estimate, DataError) or not estimate.suspicious:
        return
    msg = (
        f"the noise level cannot be taken from the images, whose noise fails a check "
        f"({_failed(estimate.suspicious)}). Use other images; or, if you know the level, give "
        f"corrupt.sigma (corrupt.sigma_hat) as a number (the estimate is {estimate.sigma:.4g})"
    )
    raise DataError(msg)


def _refuse_other_kinds(kinds: Sequence[NoiseKind]) -> None:
    """Raise DataError if observations show noise that no level describes, and that is certain."""
    seen = [kind for kind in kinds if kind.name in _NOT_OF_ONE_LEVEL]
    if not seen:
        return
    msg = f"corrupt takes the noise to be white and of one level, but it is {seen[0].name}: "
    msg += seen[0].finding
    if seen[0].setting is not None:
        msg += f". Set {seen[0].setting}"
    raise DataError(
        f"{msg}; or, if a level describes it all the same, give corrupt.sigma as a "
        "number and set corrupt.trust_sigma to true"
    )


def _failed(checks: Iterable[Check]) -> str:
    return "; ".join(check.finding for check in checks)


def _refuse_contradiction(
    corrupt: Corrupt, found: ImageStore, estimate: NoiseEstimate | DataError
) -> None:
    """Raise DataError if observations show noise that is not that of the given level."""
    name = "corrupt.sigma" if corrupt.sigma != "auto" else "corrupt.sigma_hat"
    level = corrupt.sigma if corrupt.sigma != "auto" else corrupt.sigma_hat
    if not isinstance(level, float):
        return
    seen = _what_contradicts(level, found, estimate)
    if seen is None:
        return
    if found.intensity.camera is not None and level == found.intensity.scale:
        camera = found.intensity.camera
        msg = (
            f"data.intensity.camera (gain {camera.gain:.4g}, offset {camera.offset:.4g}, read "
            f"noise {camera.read_noise:.4g}) should make noise of level {level:.4g}, but {seen}. "
            "Correct its numbers (auto estimates them), or give corrupt.sigma as a number and set "
            "corrupt.trust_sigma to true"
        )
        raise DataError(msg)
    raw = found.intensity != PIXELS and found.intensity.camera is None
    given = f"{level:g}" + (f" ({level / found.intensity.scale:g} in raw units)" if raw else "")
    msg = (
        f"{name} is {given}, but {seen}. {_averaging(level, found)}Levels are in data units "
        "(images span [-1, 1]): divide grey levels by 127.5, double a level for images in [0, 1]. "
        "Averaging, resizing, filtering or compression after the noise was measured change it, "
        f"too. Correct {name} (auto estimates it) or the images; if the level is right all the "
        "same, set corrupt.trust_sigma to true"
    )
    raise DataError(msg)


def _what_contradicts(
    level: float, found: ImageStore, estimate: NoiseEstimate | DataError
) -> str | None:
    """What observations show instead of white noise of the given level; None where they do not."""
    if isinstance(estimate, NoNoiseError):
        return str(estimate) if level > 0 else None
    if isinstance(estimate, DataError):
        averaged = level > 0 and found.meta.info.get("averaged") is not None
        return f"pixels were averaged, and {estimate}" if averaged else None
    if max(level, estimate.high) <= NEGLIGIBLE:
        return None
    failed = [check for check in estimate.suspicious if check.name in _NOT_WHITE]
    if estimate.contradicts(level):
        interval = f"{estimate.low:.4g} to {estimate.high:.4g}"
        seen = f"the images show noise of level {estimate.sigma:.4g} ({interval})"
        return f"{seen}, which is not all ({_failed(failed)})" if failed else seen
    if any(check.name == "white" for check in failed):
        return f"the noise of the images is not white ({_failed(failed)})"
    return None


def _averaging(level: float, found: ImageStore) -> str:
    """What ``prepare`` did to the level of the original images, if it averaged pixels."""
    factor = found.meta.info.get("averaged")
    if not isinstance(factor, int):
        return ""
    return (
        f"data.resolution averaged {factor} x {factor} pixels, which divides white noise by "
        f"{factor}: {level:g} of the original images is {level / factor:.4g} here. "
    )


def _report(
    paths: Paths, noise: Noise, estimate: NoiseEstimate | DataError, count: int, log: StageLog
) -> None:
    """Write, log and say what was found and what is assumed."""
    report = {"sigma": noise.sigma, "sigma_hat": noise.assumed}
    target = paths.report("corrupt") / "noise.json"
    if isinstance(estimate, DataError):
        write_json(target, {**report, "problem": str(estimate)})
        log.say(f"{estimate} (assumed: {noise.assumed:.4g}, as given)")
        return
    write_json(target, {**report, "estimate": estimate.as_json()})
    log.metrics(
        count,
        {
            "sigma_hat": noise.assumed,
            "sigma_estimate": estimate.sigma,
            "sigma_low": estimate.low,
            "sigma_high": estimate.high,
        },
    )
    log.say(f"{summary_of(estimate)}; assumed from here on: {noise.assumed:.4g}")
    for check in estimate.suspicious:
        log.say(f"suspicious noise ({check.name}): {check.text}")


def summary_of(estimate: NoiseEstimate) -> str:
    """The estimate and its interval, in one line."""
    return f"noise level {estimate.sigma:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"
