"""Output folders of a stage: replaced as a whole when the stage is done, never written into."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from dsd.utils.files import check_replaceable, replaced
from pipeline.stage_io.paths import Paths

__all__ = ["check_outputs", "replaced_outputs"]


@contextmanager
def replaced_outputs(paths: Paths, stage: str) -> Iterator[Paths]:
    """Replace ``data/<stage>`` and ``reports/<stage>`` at the end of the block, unless it fails.

    Their files may be links into DVC's cache, which must not change, and a file that the new run
    does not write must not stay. Yields the workspace with both folders where the new, empty ones
    are.

    Raises:
        OSError: The disk refuses, or this user may not replace the folders.
    """
    with ExitStack() as stack:
        fresh = [(place, stack.enter_context(replaced(place))) for place in _places(paths, stage)]
        yield replace(paths, fresh=tuple(fresh))


def check_outputs(paths: Paths, stage: str) -> None:
    """Raise PermissionError, before hours of work, if this user may not replace the outputs."""
    for place in _places(paths, stage):
        check_replaceable(place)


def _places(paths: Paths, stage: str) -> list[Path]:
    places = [paths.artifact(stage), paths.report(stage)]
    return places[1:] if stage == "evaluate" else places
