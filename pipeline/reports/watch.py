"""``python -m pipeline watch``: a page that shows trainings while they run, and reloads itself.

It reads the notes of the stages at work (:mod:`pipeline.runtime.live`) and the pictures beside
their states, in another process, so that no training waits for it.
"""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from markupsafe import Markup

from dsd.utils.errors import DataError
from dsd.utils.files import read_json
from pipeline.reports.figures import draw_curve
from pipeline.reports.page import embed, inline, open_page, write_page
from pipeline.runtime.progress import readable, speaker
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv
from pipeline.stages import STAGES

__all__ = ["RELOAD_SECONDS", "watch", "write_watch_page"]

RELOAD_SECONDS = 5
_STALE_SECONDS = 60.0
"""After which the note of a process on another machine counts as left behind."""

_CURVES = {
    "loss": ("pretrain", "loss.csv", "Loss of the teacher", "loss"),
    "gap": ("distill", "trajectory.csv", "Gap between teacher and fake denoiser", "gap"),
    "proximal_frechet": ("distill", "trajectory.csv", "Proximal FID", "Proximal Frechet distance"),
}
"""Stage, file of its report, title and label of the axis."""
_LATENTS = "from the same latents each time"
_HEALTHY = {
    "loss": "Falls fast, then flattens. Rising for long: lower pretrain.learning_rate.",
    "gap": "Falls as generated images become like those that the teacher knows.",
    "proximal_frechet": "Smaller is better; the generator of the smallest one is kept.",
}
_PICTURES = {
    "denoised": ("pretrain", "denoised", "Denoised", "two noisy rows above the teacher's answer"),
    "samples": ("pretrain", "pictures", "Samples of the teacher", _LATENTS),
    "one step": ("distill", "pictures", "One-step samples", _LATENTS),
}
"""Stage, folder, title, and what the caption adds."""

_REPORTED = {"pictures": "samples"}
"""Folders in the report of a stage that is done, where they have another name."""


class Figure(NamedTuple):
    """A curve or a picture with its caption."""

    title: str
    picture: Markup
    caption: str


class Section(NamedTuple):
    """A workspace or an experiment: what runs there, and what it has to show."""

    title: str
    share: float | None
    status: Sequence[str]
    figures: Sequence[Figure]


def watch(paths: Paths) -> None:
    """Keep ``reports/watch.html`` up to date until Ctrl-C; open it where there is a display."""
    speaker.stop()  # the page speaks
    write_watch_page(paths)
    open_page(paths.watch_page, paths.root)
    print(f"It reloads itself every {RELOAD_SECONDS} s until Ctrl-C here", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(RELOAD_SECONDS)
            write_watch_page(paths)


def write_watch_page(paths: Paths) -> None:
    """Write the page as things are now: each running stage, else the last run of ``paths``."""
    notes = [*_notes(paths)]
    sections = [_section(Paths(Path(note["root"])), note) for note in notes]
    write_page(
        paths.watch_page,
        "watch.html.j2",
        title=_title(notes),
        reload_seconds=RELOAD_SECONDS,
        sections=sections or [_section(paths, None)],
        at=time.strftime("%H:%M:%S"),
    )


def _title(notes: Sequence[Mapping[str, Any]]) -> str:
    """What the browser's tab shows."""
    parts = []
    for note in notes:
        share = _share(note)
        parts.append(note["stage"] if share is None else f"{share:.0%} {note['stage']}")
    return ", ".join(parts) or "Nothing runs"


def _notes(paths: Paths) -> Iterator[dict[str, Any]]:
    """Notes of the stages at work, in the order of their workspaces."""
    found = []
    for file in paths.live.glob("*.json"):
        with suppress(OSError, DataError, KeyError, TypeError):
            note = read_json(file)
            alive = (
                psutil.pid_exists(note["pid"])
                if file.name.startswith(f"{socket.gethostname()}-")
                else time.time() - note["at"] < _STALE_SECONDS
            )
            if alive and note["stage"] in STAGES:
                found.append((note["root"], note))
    yield from (note for _, note in sorted(found, key=lambda item: item[0]))


def _share(note: Mapping[str, Any]) -> float | None:
    total = note["total_images"]
    return min(1.0, note["images"] / total) if total else None


def _section(paths: Paths, note: Mapping[str, Any] | None) -> Section:
    """What a stage at work shows and the stages before it have shown; without one, all have."""
    names = [*STAGES]
    last = names[-1] if note is None else str(note["stage"])
    shown = [
        figure
        for stage in reversed(names[: names.index(last) + 1])  # what is new comes first
        for figure in (*_pictures(paths, stage, note), *_curves(paths, stage, note))
    ]
    return Section(_heading(note), None if note is None else _share(note), _status(note), shown)


def _curves(paths: Paths, of: str, note: Mapping[str, Any] | None) -> Iterator[Figure]:
    for name, (stage, file, title, label) in _CURVES.items():
        if stage == of:
            running = note is not None and note["stage"] == of
            curve = (
                note["curves"].get(name, ())
                if note is not None and running
                else _reported(paths.report(stage) / file, name)
            )
            if curve:
                drawn = _drawn(name, label, tuple((seen, value) for seen, value in curve))
                yield Figure(title, drawn, _HEALTHY[name])


def _pictures(paths: Paths, of: str, note: Mapping[str, Any] | None) -> Iterator[Figure]:
    for stage, kind, title, more in _PICTURES.values():
        if stage == of:
            running = note is not None and note["stage"] == of
            folder = paths.report(stage) / _REPORTED.get(kind, kind)
            if note is not None and running:
                folder = Path(note["state"] or "") / kind
            yield from _latest(folder, title, more)


def _heading(note: Mapping[str, Any] | None) -> str:
    if note is None:
        return "Nothing runs now"
    stage = note["stage"]
    head = f"{stage}, stage {[*STAGES].index(stage) + 1} of {len(STAGES)}"
    return f"{note['experiment']}: {head}" if note["experiment"] else head


def _status(note: Mapping[str, Any] | None) -> list[str]:
    """What is done, how far it is and how long it will take."""
    if note is None:
        return ["This is what the last run left; dvc repro starts the next one."]
    words = [STAGES[note["stage"]].description, note["doing"]]
    if note["total_images"]:
        words.append(f"{note['images']:,} of {note['total_images']:,} images")
    if note["seconds_left"] is not None:
        words.append(f"{readable(note['seconds_left'])} left")
        if note["later_seconds"]:
            both = note["seconds_left"] + note["later_seconds"]
            words.append(f"{readable(both)} with later stages")
    return words


def _reported(file: Path, name: str) -> list[tuple[float, float]]:
    """A curve in the report of a stage that is done; empty where there is none."""
    try:
        rows = read_csv(file)
    except (OSError, DataError):
        return []
    return [(float(row["images"]), float(row[name])) for row in rows if row.get(name)]


@lru_cache(maxsize=32)
def _drawn(name: str, label: str, curve: tuple[tuple[float, float], ...]) -> Markup:
    seen = [images / 1000 for images, _ in curve]
    figure = draw_curve(seen, [value for _, value in curve], ylabel=label)
    last = f"{label}: {curve[-1][1]:.3g} after {curve[-1][0]:,.0f} images"
    return inline(figure, f"{name}-{len(curve)}", last)


def _latest(folder: Path, title: str, more: str) -> Iterator[Figure]:
    """The newest picture of a folder, if there is one."""
    for file in sorted(folder.glob("[0-9]*.png"))[-1:]:
        with suppress(OSError, DataError):  # it may have been moved at this moment
            caption = f"After {int(file.stem):,} images, {more}"
            yield Figure(title, embed(file, f"{title}: {caption}"), caption)
