"""What is compared with what."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from bench.speed import data, machine, measures, sampling, startup, trainings
from bench.speed.race import Contest, Contestant
from bench.speed.settings import Setting
from bench.speed.work import MakeWork

__all__ = ["GROUPS", "Checkouts", "contests", "limits"]

_EMBEDDED_IMAGES = 16_000
"""Taken through the first stages: some 20 MB when noisy."""

_EXTRACTED = {"fashion-classifier": 2000, "efficientnet-lite0": 200}
_SHORT_PRECISIONS: Mapping[str, tuple[str, ...]] = {"cpu": (), "cuda": ("tf32", "bfloat16")}
"""Arithmetic besides float32 that is worth measuring."""

_OBSERVATIONS = 50_000
"""Among which the images of a step are chosen where that is timed: as many as CIFAR-10 has."""

_DISTANCE_DIMS = (1280, 2048)


@final
class Checkouts(NamedTuple):
    """Where the reference implementations are; None where the user has none."""

    edm: Path | None = None
    sid: Path | None = None


def limits(kind: str) -> Contestant:
    """The most that the machine does, which is measured between the turns of all others."""
    options = {"precisions": ["float32", *_SHORT_PRECISIONS[kind]]}
    return Contestant("limits", machine.limits, options)


def contests(
    groups: Sequence[str], kind: str, settings: Sequence[Setting], checkouts: Checkouts
) -> Iterator[Contest]:
    """All comparisons of some groups, in the order of ``GROUPS``.

    Args:
        groups: Names among ``GROUPS``.
        kind: ``cpu`` or ``cuda``.
        settings: Sizes of networks.
        checkouts: The reference implementations.
    """
    makers = {
        "teacher": lambda: _trainings(_TEACHER, kind, settings, checkouts.edm),
        "distill": lambda: _trainings(_DISTILL, kind, settings, checkouts.sid),
        "sampling": lambda: _sampling(kind, settings, checkouts.edm),
        "features": _features,
        "frechet": _distances,
        "data": lambda: _data(settings),
        "startup": _startup,
    }
    for group in GROUPS:
        if group in groups:
            yield from makers[group]()


GROUPS = ("teacher", "distill", "sampling", "features", "frechet", "data", "startup")
"""Names by which comparisons are chosen."""


class _Training(NamedTuple):
    """The ways to make a step of a training."""

    group: str
    title: str
    reference: str
    ours: MakeWork
    plain: MakeWork
    theirs: MakeWork
    ours_on_theirs: MakeWork
    note: str


_TEACHER = _Training(
    "teacher",
    "Training a teacher",
    "EDM",
    trainings.teacher_ours,
    trainings.teacher_plain,
    trainings.teacher_reference,
    trainings.teacher_ours_on_reference,
    "Of use: images whose level gives a gradient, at sigma 0.2; with EDM as DSD's code clamps it.",
)
_DISTILL = _Training(
    "distill",
    "Distilling",
    "SiD",
    trainings.distill_ours,
    trainings.distill_plain,
    trainings.distill_reference,
    trainings.distill_ours_on_reference,
    "An iteration is one step of the fake denoiser and one of the generator.",
)


def _trainings(
    training: _Training, kind: str, settings: Sequence[Setting], checkout: Path | None
) -> Iterator[Contest]:
    for setting in settings:
        options = {"setting": setting.model_dump(mode="json")}
        entrants = [
            Contestant("ours", training.ours, options),
            Contestant("plain", training.plain, options, bare=True),
            *_references(training, options, checkout, patch=setting.network.patch_size),
        ]
        for short in _SHORT_PRECISIONS[kind]:
            shorter = {**options, "precision": short}
            entrants.append(Contestant(f"ours, {short}", training.ours, shorter, precision=short))
        name = f"{training.title}: {_size(setting)}"
        yield Contest(training.group, name, "images/s", entrants, training.note)


def _references(
    training: _Training, options: Mapping[str, Any], checkout: Path | None, *, patch: int
) -> Iterator[Contestant]:
    """The reference's step, and ours with its network."""
    theirs, missing = training.reference, _missing(training.reference, checkout, patch)
    mixed = f"our step, {theirs}'s network"
    yield Contestant(theirs, training.theirs, options, checkout, missing, bare=True)
    yield Contestant(mixed, training.ours_on_theirs, options, checkout, missing)


def _missing(reference: str, checkout: Path | None, patch: int) -> str | None:
    if patch > 1:
        return "it does not fold pixels into channels"
    if checkout is None:
        return f"no --{reference.lower()}"
    return None


def _size(setting: Setting) -> str:
    channels, height, width = setting.shape
    return f"{setting.name}, {width}x{height}x{channels}"


def _sampling(kind: str, settings: Sequence[Setting], checkout: Path | None) -> Iterator[Contest]:
    for setting in settings:
        options = {"setting": setting.model_dump(mode="json")}
        missing = _missing("EDM", checkout, setting.network.patch_size)
        one = [
            Contestant("ours", sampling.one_step_ours, options),
            Contestant(
                "EDM's network", sampling.one_step_reference, options, checkout, missing, bare=True
            ),
        ]
        yield Contest("sampling", f"One step: {_size(setting)}", "images/s", one)
        if kind == "cpu" and setting.name == "paper":
            continue  # 35 evaluations of it take ten seconds for one image
        many = [
            Contestant("ours", sampling.heun_ours, options),
            Contestant("EDM", sampling.heun_reference, options, checkout, missing, bare=True),
        ]
        yield Contest("sampling", f"18 steps of Heun: {_size(setting)}", "images/s", many)


def _features() -> Iterator[Contest]:
    entrants = [
        Contestant(space, measures.extraction, {"space": space, "images": images})
        for space, images in _EXTRACTED.items()
    ]
    yield Contest("features", "Features of images", "images/s", entrants, relation="none")


def _distances() -> Iterator[Contest]:
    for dim in _DISTANCE_DIMS:
        options = {"dim": dim}
        pair = [
            Contestant("ours", measures.frechet_ours, options),
            Contestant("clean-fid", measures.frechet_clean_fid, options, bare=True),
        ]
        yield Contest("frechet", f"Frechet distance, {dim} features", "s", pair)
    one = [Contestant("ours", measures.moments_of_features, {"dim": dim})]
    yield Contest("frechet", f"Mean and covariance, {dim} features", "images/s", one)


def _data(settings: Sequence[Setting]) -> Iterator[Contest]:
    options = {"images": _EMBEDDED_IMAGES}
    entrants = [
        Contestant("prepare", data.prepare_stage, options),
        Contestant("corrupt", data.corrupt_stage, options),
        Contestant("load", data.load_store, options),
    ]
    note = "Megabytes as written."
    yield Contest("data", "Images on their way", "MB/s", entrants, note, "none")
    for setting in settings[:1]:
        sized = {"setting": setting.model_dump(mode="json"), "observations": _OBSERVATIONS}
        pair = [
            Contestant("a whole step of the teacher", data.training_step, sized),
            Contestant("drawing images, levels and noise", data.waiting, sized),
        ]
        name = f"Waiting for images: {_size(setting)}"
        yield Contest("data", name, "s", pair, relation="part")


def _startup() -> Iterator[Contest]:
    entrants = [
        Contestant('python -c "import dsd"', startup.command, {"arguments": ["-c", "import dsd"]}),
        Contestant(
            "python -m pipeline --help",
            startup.command,
            {"arguments": ["-m", "pipeline", "--help"]},
        ),
        Contestant("dvc repro, nothing to do", startup.repro),
    ]
    yield Contest("startup", "Processes with nothing to do", "s", entrants, relation="none")
