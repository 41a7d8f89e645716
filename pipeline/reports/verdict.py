"""What a reader of a report must know first: whether a training helped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsd.selection.proximal import choose
from pipeline.reports.page import as_number
from pipeline.reports.summary import LABELS, feature_spaces, title_of
from pipeline.tracking.headline import best_teacher, not_improved

__all__ = ["problems"]

_RISE = 1.1
_TENTHS = 10
_SURE = 2.0
"""Standard errors by which a later checkpoint is worse than the chosen one."""


def problems(
    summary: Mapping[str, Any], losses: Sequence[float], trajectory: Sequence[Mapping[str, str]]
) -> list[str]:
    """Sentences about trainings that got worse or did not help; none of a healthy run.

    Args:
        summary: Of the run.
        losses: Of the teacher, over its training.
        trajectory: Rows of the checkpoints of the distillation, with the columns ``images``,
            ``proximal_frechet`` and ``proximal_frechet_standard_error``.
    """
    return [*_generator(summary), *_distillation(trajectory), *_teacher(losses)]


def _generator(summary: Mapping[str, Any]) -> Iterator[str]:
    features = feature_spaces(summary)[0]
    for measure in not_improved(summary):
        best = best_teacher(summary, measure)
        assert best is not None
        name, distance = best
        registered = measure == "proximal_frechet"
        yield (
            f"The generator did not improve on its teacher: {title_of(measure, features)} is "
            f"{as_number(summary['generator'][measure])}, and {as_number(distance)} for "
            f"{LABELS[name]}."
            + (" It does not compete for the alias champion." if registered else "")
        )


def _distillation(trajectory: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if len(trajectory) < 2:
        return
    values = [float(row["proximal_frechet"]) for row in trajectory]
    errors = [float(row["proximal_frechet_standard_error"]) for row in trajectory]
    at = choose(values, errors)
    if at == 0:
        yield (
            "The distillation did not improve the generator: its first checkpoint, after "
            f"{int(trajectory[0]['images']):,} images, was chosen."
        )
    elif values[-1] - values[at] > _SURE * (errors[-1] + errors[at]):
        yield (
            f"The distillation got worse after {int(trajectory[at]['images']):,} images: its "
            f"Proximal distance rose from {as_number(values[at], errors[at])} to "
            f"{as_number(values[-1], errors[-1])}. The generator is that from before."
        )


def _teacher(losses: Sequence[float]) -> Iterator[str]:
    size = len(losses) // _TENTHS
    if size == 0:
        return
    means = [sum(losses[n * size : (n + 1) * size]) / size for n in range(_TENTHS)]
    least = min(means)
    if least > 0 and means[-1] > _RISE * least:
        rise = as_number(100 * (means[-1] / least - 1))
        yield (
            f"The teacher got worse: the mean loss of the last tenth of its training is {rise} % "
            "above the least of a tenth."
        )
