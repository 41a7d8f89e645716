"""How long stages take here: kept from runs and from ``plan``, for the next start.

A time counts for parameters that make the same work of the same kind; a longer training, or more
samples, is taken to need time in proportion.
"""

import hashlib
import json
import platform
from contextlib import suppress
from typing import Any, NamedTuple

from dsd.utils.errors import DataError
from dsd.utils.files import read_json, write_json
from pipeline.params.model import Params
from pipeline.params.reader import flatten
from pipeline.runtime.progress import readable
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES

__all__ = ["Expected", "announcement", "expected", "remember"]

_IMAGES = ("data", "corrupt.operator")
_NETWORK = (*_IMAGES, "network", "compute")
_KIND = {
    "prepare": ("data",),
    "corrupt": (*_IMAGES, "corrupt.num_heldout", "corrupt.workers"),
    "pretrain": (*_NETWORK, "pretrain.batch_size", "pretrain.consistency"),
    "distill": (
        *_NETWORK,
        "distill.batch_size",
        "distill.divergence",
        "distill.fake_updates_per_step",
        "distill.selection",
    ),
    "evaluate": (*_NETWORK, "evaluate.features", "evaluate.sampler", "distill.selection"),
}
"""Keys and sections on which the time for a unit of a stage's work depends."""

_AMOUNT = {
    "pretrain": "pretrain.kimg",
    "distill": "distill.kimg",
    "evaluate": "evaluate.num_samples",
}
"""Keys to which a stage's time is proportional, about."""


class Expected(NamedTuple):
    """Seconds that a stage should take, and whether a run took them or ``plan`` estimated them."""

    seconds: float
    ran: bool


def expected(params: Params, paths: Paths) -> dict[str, Expected]:
    """What is known of the stages' times with these parameters on this machine, by stage."""
    kept, found = _kept(paths), {}
    for stage in STAGES:
        with suppress(KeyError, TypeError, ValueError):
            each, ran = kept[stage][_kind(stage, params)]
            found[stage] = Expected(float(each) * _amount(stage, params), bool(ran))
    return found


def remember(stage: str, params: Params, paths: Paths, seconds: float, *, ran: bool) -> None:
    """Keep what a stage took; an estimate never replaces what really ran."""
    known = expected(params, paths).get(stage)
    if known is not None and known.ran and not ran:
        return
    kept = _kept(paths)
    times = kept.setdefault(stage, {})
    times[_kind(stage, params)] = [seconds / _amount(stage, params), ran]
    # A convenience: a full disk is reported by what matters.
    with suppress(OSError):
        write_json(paths.times, kept)


def announcement(stage: str, params: Params, paths: Paths) -> tuple[str, float | None]:
    """The first line of a stage: what it does, and how long that and all that follows take.

    Returns:
        The line, and the seconds of the later stages, None unless all are known.
    """
    names, known = [*STAGES], expected(params, paths)
    number = names.index(stage)
    line = f"{stage}, stage {number + 1} of {len(names)}: {STAGES[stage].description}"
    if stage in known:
        line += f"; about {readable(known[stage].seconds)}"
    later = names[number + 1 :]
    if any(name not in known for name in (stage, *later)):
        return f"{line} (`python -m pipeline forecast` estimates the time)", None
    seconds = sum(known[name].seconds for name in later)
    if later:
        line += f", {readable(known[stage].seconds + seconds)} with the {len(later)} after it"
    return line, seconds


def _kind(stage: str, params: Params) -> str:
    values = {
        key: value
        for key, value in flatten(params).items()
        if any(key == one or key.startswith(f"{one}.") for one in _KIND[stage])
    }
    text = json.dumps([platform.node(), values])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _amount(stage: str, params: Params) -> float:
    key = _AMOUNT.get(stage)
    return 1.0 if key is None else float(flatten(params)[key] or 1.0)


def _kept(paths: Paths) -> dict[str, Any]:
    try:
        kept = read_json(paths.times)
    except (OSError, DataError):
        return {}
    return kept if isinstance(kept, dict) else {}
