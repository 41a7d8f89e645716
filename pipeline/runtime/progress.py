"""Progress for people: a bar on a terminal, lines in a log, and never five seconds of silence."""

import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Never, TextIO, final

from tqdm import tqdm

from pipeline.runtime.launch import NullLog
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.log import Progress

__all__ = [
    "Bar",
    "Lines",
    "Speaker",
    "UntrackedLog",
    "doing",
    "make_progress",
    "percent_in",
    "readable",
    "say",
    "speaker",
]

_LINE_SECONDS, _SILENT_SECONDS = 4.0, 4.5
_PERCENT = re.compile(r"\w+ (\d+)% [\d,]+/[\d,]+ images")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def readable(seconds: float) -> str:
    """A duration as people say it, in at most two units: 1 min 20 s, 2 h 5 min, 3 d 4 h."""
    rest = max(0, round(seconds))
    for unit, word, next_unit, next_word in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if rest >= unit:
            count, less = divmod(rest, unit)
            # Nobody needs the seconds of a long time.
            smaller = 0 if word == "min" and count >= 10 else less // next_unit
            return f"{count} {word}" + (f" {smaller} {next_word}" if smaller else "")
    return f"{rest} s"


def say(text: str) -> None:
    """Print one line on stdout without tearing a bar apart."""
    speaker.heard()
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def doing(text: str) -> None:
    """Note what is done from now on; the :class:`Speaker` says it if it takes long."""
    speaker.begin(text)


def percent_in(line: str) -> float | None:
    """Percentage in a line of :class:`Lines`; None for any other line."""
    match = _PERCENT.match(line)
    return float(match[1]) if match else None


@final
class Speaker:
    """What this process does, how far it is and when it last spoke; there is one, ``speaker``.

    Between ``start`` and ``stop`` a thread prints a line on stderr when nothing else has been
    printed for ``seconds``: work that has no bar of progress looks dead otherwise.

    Args:
        seconds: Of silence.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self, seconds: float = _SILENT_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self._clock = seconds, clock
        self.later_seconds: float | None = None
        """What the stages after this one take, if that is known."""

        self.images = self.total_images = self.first_images = 0
        """Of the present display; ``first_images`` are those of an interrupted run."""

        self.seconds_left: float | None = None
        self.bar: tqdm[Never] | None = None
        """The bar on the terminal, which then shows what is done; a line would be one of many."""

        self._label = ""
        self.what = ""
        self._began_at = self._heard_at = clock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.each: Callable[[], None] = lambda: None
        """Called often by the thread."""

    def start(self, label: str) -> None:
        """Begin to speak for the command ``label``."""
        self._label = label
        self.begin("starting")
        self.heard()
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="speaker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be silent again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def begin(self, what: str) -> None:
        """Note what is done from now on."""
        self.what, self._began_at = what, self._clock()

    def heard(self) -> None:
        """Note that something was printed."""
        self._heard_at = self._clock()

    def moved(self, images: int, total: int, seconds_left: float | None) -> None:
        """Note how far the present display is."""
        self.images, self.total_images, self.seconds_left = images, total, seconds_left

    def share_of_this_process(self) -> float:
        """Share of all images that this process has worked through, not one before it."""
        return (self.images - self.first_images) / self.total_images if self.images else 1.0

    def break_silence(self) -> None:
        """Print what is done, if nothing was printed for too long."""
        now = self._clock()
        if now - self._heard_at < self.seconds:
            return
        self._heard_at = now
        text = f"{self.what}, {readable(now - self._began_at)} so far"
        # A closed pipe is noticed by whoever prints results into it.
        with suppress(OSError, ValueError):
            if self.bar is None:
                tqdm.write(f"{self._label}: {text}", file=sys.stderr)
                sys.stderr.flush()
            else:
                self.bar.set_postfix_str(text)

    def _watch(self) -> None:
        while not self._ended.wait(self.seconds / 20):
            self.break_silence()
            self.each()


speaker = Speaker()


@final
class UntrackedLog(NullLog):
    """The log of a stage where MLflow is not installed: lines and progress, no numbers."""

    def __init__(self, stage: str, stop: StopSignal) -> None:
        super().__init__(stop)
        self._stage = stage

    def say(self, text: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.say`."""
        say(text)

    def doing(self, text: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.doing`."""
        doing(text)

    def progress(self, total_images: int) -> Progress:
        """See :meth:`pipeline.stage_io.log.StageLog.progress`."""
        return make_progress(self._stage, total_images)


def make_progress(label: str, total_images: int, stream: TextIO | None = None) -> Progress:
    """Return a display of ``total_images`` that suits the stream, stderr unless given."""
    stream = sys.stderr if stream is None else stream
    kind = Bar if stream.isatty() else Lines
    return kind(label, total_images, stream)


class _Display:
    """How far a stage is, and how fast; printed in one way or another.

    Args:
        label: Name of the stage.
        total_images: Images at 100 %.
        stream: Where it is printed.
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
        self._made_at = clock()

    def update(self, images: int, **shown: float) -> None:
        """See :meth:`pipeline.stage_io.log.Progress.update`."""
        now = self._clock()
        if self._first_at is None:
            # The images of an interrupted run, and the start-up, must not count in the rate.
            self._first_at, self._first_images = now, images
            speaker.first_images = images
        self._images = images
        self._shown |= shown
        rate = self._rate(now)
        left = max(self._total - images, 0) / rate if rate else None
        speaker.moved(images, self._total, left)
        self._show(now)

    def _show(self, now: float) -> None:
        raise NotImplementedError

    def _rate(self, now: float) -> float | None:
        """Images a second of this process; None before there are any."""
        assert self._first_at is not None
        done, seconds = self._images - self._first_images, now - self._first_at
        return done / seconds if done > 0 and seconds > 0 else None

    def _words(self, now: float) -> list[str]:
        """Rate, times left and values, as far as they are known."""
        parts = []
        if rate := self._rate(now):
            left = max(self._total - self._images, 0) / rate
            parts += [f"{rate:,.0f} img/s" if rate >= 10 else f"{rate:.2g} img/s"]
            parts += [f"{readable(left)} left"]
            if speaker.later_seconds:
                parts += [f"{readable(left + speaker.later_seconds)} with later stages"]
        return parts + [f"{name} {value:.3g}" for name, value in self._shown.items()]


@final
class Bar(_Display, AbstractContextManager["Bar"]):
    """A tqdm bar; it appears with the first update, where a resumed run starts above zero."""

    _bar: "tqdm[Never] | None" = None

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            speaker.bar = None
            self._bar.close()

    def _show(self, now: float) -> None:
        if self._bar is None:
            self._bar = speaker.bar = tqdm(
                desc=self._label,
                total=self._total,
                initial=self._images,
                file=self._stream,
                dynamic_ncols=True,
                mininterval=0.5,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n:,}/{total:,} images{postfix}",
            )
        self._bar.set_postfix_str(", ".join(self._words(now)), refresh=False)
        speaker.heard()
        self._bar.update(self._images - self._bar.n)


@final
class Lines(_Display, AbstractContextManager["Lines"]):
    """One complete line at most every four seconds, and one at the end; never a carriage return.

    The label is the first word of each line.
    """

    _printed_at: float | None = None
    _printed_images = -1

    def __exit__(self, *error: object) -> None:
        """Print where the stage stands, unless the last line said so."""
        if self._first_at is not None and self._images != self._printed_images:
            self._print(self._clock())

    def _show(self, now: float) -> None:
        if now - (self._printed_at or self._made_at) >= _LINE_SECONDS:
            self._print(now)

    def _print(self, now: float) -> None:
        self._printed_at, self._printed_images = now, self._images
        percent = 100 * self._images // max(self._total, 1)
        head = f"{self._label} {percent}% {self._images:,}/{self._total:,} images"
        speaker.heard()
        print(", ".join([head, *self._words(now)]), file=self._stream, flush=True)
