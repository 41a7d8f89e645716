"""Progress for people: a bar on a terminal, plain lines at intervals in a log."""

import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Never, TextIO, final

from tqdm import tqdm

from pipeline.runtime.launch import NullLog
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.log import Progress

__all__ = ["Bar", "Lines", "UntrackedLog", "make_progress", "percent_in", "say"]

_LINE_SECONDS = 4.0
_PERCENT = re.compile(r"\w+ (\d+)% [\d,]+/[\d,]+ images")


def make_progress(label: str, total_images: int, stream: TextIO | None = None) -> Progress:
    """Return a display of ``total_images`` that suits the stream, stderr unless given."""
    stream = sys.stderr if stream is None else stream
    kind = Bar if stream.isatty() else Lines
    return kind(label, total_images, stream)


def say(text: str) -> None:
    """Print one line on stdout without tearing a bar apart."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def percent_in(line: str) -> float | None:
    """Percentage in a line of :class:`Lines`; None for any other line."""
    match = _PERCENT.match(line)
    return float(match[1]) if match else None


@final
class UntrackedLog(NullLog):
    """The log of a stage where MLflow is not installed: lines and progress, no numbers."""

    def __init__(self, stage: str, stop: StopSignal) -> None:
        super().__init__(stop)
        self._stage = stage

    def say(self, text: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.say`."""
        say(text)

    def progress(self, total_images: int) -> Progress:
        """See :meth:`pipeline.stage_io.log.StageLog.progress`."""
        return make_progress(self._stage, total_images)


@final
class Bar(AbstractContextManager["Bar"]):
    """A tqdm bar; it appears with the first update, where a resumed run starts above zero."""

    def __init__(self, label: str, total_images: int, stream: TextIO) -> None:
        self._label, self._total, self._stream = label, total_images, stream
        self._bar: tqdm[Never] | None = None
        self._shown: dict[str, float] = {}

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def update(self, images: int, **shown: float) -> None:
        """See :meth:`pipeline.stage_io.log.Progress.update`."""
        self._shown |= shown
        if self._bar is None:
            self._bar = tqdm(
                desc=self._label,
                total=self._total,
                initial=images,
                file=self._stream,
                unit=" images",
                dynamic_ncols=True,
                mininterval=0.5,
                smoothing=0.1,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n:,}/{total:,} images, "
                "{rate_fmt}, {remaining} left{postfix}",
            )
        if self._shown:
            self._bar.set_postfix_str(_values(self._shown), refresh=False)
        self._bar.update(images - self._bar.n)


@final
class Lines(AbstractContextManager["Lines"]):
    """One complete line at most every four seconds, and one at the end; never a carriage return.

    Args:
        label: Name of the stage, the first word of each line.
        total_images: Images at 100 %.
        stream: Where the lines go.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        label: str,
        total_images: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._stream, self._clock = label, total_images, stream, clock
        self._shown: dict[str, float] = {}
        self._images = self._first_images = 0
        self._first_at: float | None = None
        self._printed_at, self._printed_images = clock(), -1

    def __exit__(self, *error: object) -> None:
        """Print where the stage stands, unless the last line said so."""
        if self._first_at is not None and self._images != self._printed_images:
            self._print(self._clock(), self._first_at)

    def update(self, images: int, **shown: float) -> None:
        """See :meth:`pipeline.stage_io.log.Progress.update`."""
        now = self._clock()
        if self._first_at is None:
            # The images of an interrupted run, and the start-up, must not count in the rate.
            self._first_at, self._first_images = now, images
        self._images = images
        self._shown |= shown
        if now - self._printed_at >= _LINE_SECONDS:
            self._print(now, self._first_at)

    def _print(self, now: float, first_at: float) -> None:
        self._printed_at, self._printed_images = now, self._images
        percent = 100 * self._images // max(self._total, 1)
        parts = [f"{self._label} {percent}% {self._images:,}/{self._total:,} images"]
        done, seconds = self._images - self._first_images, now - first_at
        if done > 0 and seconds > 0:
            rate = done / seconds
            left = max(self._total - self._images, 0) / rate
            parts += [f"{rate:,.0f} img/s" if rate >= 10 else f"{rate:.2g} img/s"]
            parts += [f"{_clock_time(left)} left"]
        if self._shown:
            parts.append(_values(self._shown))
        print(", ".join(parts), file=self._stream, flush=True)


def _values(shown: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
