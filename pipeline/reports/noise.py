"""The estimate of the noise level as text: ``python -m pipeline noise``."""

from dsd.corruption.noise_level import NoiseEstimate
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
        "recommendation",
        f"  corrupt.sigma: {estimate.recommended:.4g}, the upper end: a level too low leaves "
        "noise in every image, one slightly too high shrinks faint detail",
        f"  worth a try: {', '.join(f'{level:.4g}' for level in estimate.bracket)}",
    ]
