"""Seconds and memory of work on images, found within a share of time whatever the work costs."""

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeAlias, final

import psutil
import torch

from pipeline.planning.forecast import Memory

__all__ = ["Climb", "climb", "library_memory", "peak_memory", "seconds_of", "typical_seconds"]

Work: TypeAlias = Callable[[], object]

_FACTOR = 4
"""From one number of images to the next; the first two are 1 and 2, for the slope of memory."""

_PATIENCE = 2
"""Shares of time that climbing itself may take, because few images say little about many."""

_FEW_TIMES = 6

_USABLE = 0.7
"""Share of the memory left that a probe may take."""


@final
class Climb(NamedTuple):
    """What was found by working on more and more images."""

    size: int
    """Images at last."""

    most: int
    """Images that were wanted."""

    seconds: list[float]
    """For so many, each time; if ``size`` is smaller, continued by a straight line."""

    memory: Memory
    """At the peak, with all images that were wanted; beyond ``size`` by a straight line."""

    @property
    def each(self) -> float:
        """Seconds for an image."""
        return sum(self.seconds) / len(self.seconds) / self.most


def climb(
    make: Callable[[int], Work],
    most: int,
    *,
    share: float,
    device: torch.device,
    at_once: int | None = None,
) -> Climb:
    """Time work on 1, 2, 8, ... images, up to ``most`` or to what fits; then again and again.

    Args:
        make: Prepares work on so many images.
        most: Images that are wanted.
        share: Seconds for all, about; two images are worked on even if that takes longer.
        device: Where the work is done.
        at_once: From how many images on work takes no more memory; None if it always does.
    """
    begun = time.monotonic()
    size, times, peaks = 1, dict[int, float](), dict[int, Memory]()
    while True:
        work = make(size)
        # The first time is slower, and has no optimiser's moments in memory yet; a straight line
        # from 1 to 2 images needs both as they are later.
        seconds = [seconds_of(work, device) for _ in range(2 if size <= 2 else 1)][-1:]
        times[size], peaks[size] = seconds[0], _own_peak(device)
        bigger = min(most, 2 if size == 1 else _FACTOR * size)
        late = time.monotonic() + _on_line(times, bigger) > begun + _PATIENCE * share
        if size == most or (size > 1 and (late or not _fits(peaks, bigger, device))):
            break
        del work  # or both would be in memory
        size = bigger
    while time.monotonic() + seconds[-1] < begun + share or (
        # Once more at least, unless that takes long: the first time is slower.
        len(seconds) == 1 and seconds[0] < _PATIENCE * share
    ):
        seconds.append(seconds_of(work, device))
    further = _on_line(times, most) / times[size]
    memory = _memory_at(peaks, min(most, at_once or most))
    memory = memory._replace(host=memory.host + library_memory())
    later = seconds[1:] or seconds
    return Climb(size, most, [further * second for second in later], memory)


def _on_line(values: dict[int, float], size: int) -> float:
    """What more images take, by a straight line from the fewest through the most so far."""
    first, last = min(values), max(values)
    slope = (values[last] - values[first]) / max(1, last - first)
    return values[last] + max(0.0, slope) * max(0, size - last)


def seconds_of(work: Work, device: torch.device) -> float:
    """Wall-clock seconds of work, until the device has done it."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def typical_seconds(work: Work, device: torch.device, share: float = 1.0) -> float:
    """The median of a few times within a share of time, without the first; or the only one."""
    end = time.monotonic() + share
    seconds = [seconds_of(work, device)]
    while time.monotonic() + seconds[-1] < end and len(seconds) < _FEW_TIMES:
        seconds.append(seconds_of(work, device))
    return median(seconds[1:] or seconds)


def peak_memory(device: torch.device) -> Memory:
    """Most memory that this process has had so far."""
    gpu = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0.0
    return Memory(_peak_host_memory(), gpu)


def library_memory() -> float:
    """Bytes of files, which are mostly libraries, in the resident memory; 0 if not known."""
    return _of_status("RssFile") or 0.0


def _of_status(name: str) -> float | None:
    """Bytes that Linux tells of this process; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024.0 * int(lines[name].split()[0]) if name in lines else None


def _peak_host_memory() -> float:
    """Peak of the resident memory, in bytes."""
    # Linux counts in ru_maxrss what the parent had when it forked, even after an exec.
    found = _of_status("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _own_peak(device: torch.device) -> Memory:
    """The peak without libraries: they come into memory little by little, whatever the images."""
    memory = peak_memory(device)
    return memory._replace(host=memory.host - library_memory())


def _memory_at(peaks: dict[int, Memory], size: int) -> Memory:
    """Peaks continued by a straight line; what was there already is not taken back."""
    host, gpu = (
        _on_line({images: peak[kind] for images, peak in peaks.items()}, size) for kind in (0, 1)
    )
    return Memory(host, gpu)


def _fits(peaks: dict[int, Memory], size: int, device: torch.device) -> bool:
    """Whether there is memory for work on more images."""
    needed, now = _memory_at(peaks, size), _own_peak(device)
    free = Memory(psutil.virtual_memory().available, math.inf)
    if device.type == "cuda":
        free = free._replace(gpu=torch.cuda.mem_get_info(device)[0])
    more = [wanted - had for wanted, had in zip(needed, now, strict=True)]
    return all(extra <= _USABLE * left for extra, left in zip(more, free, strict=True))
