"""The estimate of the noise level as text: ``python -m pipeline noise``."""

from collections.abc import Iterator, Sequence

from dsd.corruption.noise_kinds import NoiseKind, kinds_of_noise
from dsd.corruption.noise_level import NoiseEstimate, take_sample
from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from pipeline.params.model import Params
from pipeline.stage_io.paths import Paths
from pipeline.stages.noise import correlation_of, estimate_level, summary_of

__all__ = ["show_noise"]


def show_noise(params: Params, paths: Paths) -> None:
    """Print estimate, checks and recommendation for the observations that there are.

    Raises:
        DataError: There are no observations yet, or their noise cannot be estimated.
    """
    store = _observations(paths)
    operator = params.corrupt.operator.kind
    estimate = estimate_level(store, operator, params.seed)
    print(f"{store.folder.relative_to(paths.root)}: {len(store):,} images")
    for line in _lines(estimate):
        print(line)
    correlation = correlation_of(store, estimate, params.seed)
    if correlation is not None:
        print(correlation)
    kinds = kinds_of_noise(take_sample(store, params.seed), estimate, store.intensity)
    for line in _recommendation(kinds, estimate):
        print(line)


def _observations(paths: Paths) -> ImageStore:
    """The noisy images to train on, or the prepared ones if these are noisy."""
    train, prepared = paths.artifact("corrupt") / "train", paths.artifact("prepare")
    if (train / "meta.json").exists():
        return ImageStore.open(train)
    if (prepared / "meta.json").exists():
        store = ImageStore.open(prepared)
        if store.meta.info.get("content") == "noisy":
            return store
    missing = "prepare corrupt" if not (prepared / "meta.json").exists() else "corrupt"
    msg = f"there are no noisy images yet; make them with `dvc repro {missing}`"
    raise DataError(msg)


def _lines(estimate: NoiseEstimate) -> list[str]:
    """The whole finding, for people."""
    interval = f"chance over images at {estimate.confidence:.0%} and disagreement of estimates"
    patches = f"{estimate.patches:,} flat patches of {estimate.images:,} images"
    others = [f"  {level:<8.4g} {name}" for name, level in estimate.alternatives.items()]
    checks = [f"  {check.verdict:<11}{check.name}: {check.text}" for check in estimate.checks]
    return [
        summary_of(estimate),
        f"  the interval: {interval}; from {patches}",
        "the same by other means",
        *others,
        "checks",
        *checks,
    ]


def _recommendation(kinds: Sequence[NoiseKind], estimate: NoiseEstimate) -> Iterator[str]:
    """What kinds of noise there are, and the settings for them."""
    for kind in kinds:
        yield f"{kind.name} noise: {kind.finding}"
    yield "recommendation"
    for kind in kinds:
        if kind.setting is not None:
            yield f"  for params.yaml: {kind.setting}"
    if kinds[0].name == "white Gaussian":
        yield (
            f"  corrupt.sigma: {estimate.recommended:.4g}, the upper end: a level too low leaves "
            "noise in every image, one slightly too high shrinks faint detail"
        )
        yield f"  worth a try: {', '.join(f'{level:.4g}' for level in estimate.bracket)}"
    elif all(kind.setting is None for kind in kinds):
        yield "  no setting fits: remedy what was found first, or set corrupt.trust_sigma to true"
