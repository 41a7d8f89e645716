"""Every path of the pipeline, relative to the root of the workspace.

A stage writes ``data/<stage>`` (its artifact) and ``reports/<stage>`` (curves, pictures, the
record of its MLflow run).
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Paths", "home_of"]


def home_of(root: Path) -> Path:
    """The workspace behind ``root``: itself, unless it is a temporary copy in ``.dvc/tmp/exps``.

    DVC's queued experiments and flows run in such copies. Files that must outlive them (resumable
    states, the MLflow store) belong to the home.
    """
    root = root.resolve()
    for parent in root.parents:
        if parent.name == "exps" and parent.parts[-3:] == (".dvc", "tmp", "exps"):
            return parent.parents[2]
    return root


@dataclass(frozen=True)
class Paths:
    """Where things are in the workspace ``root``."""

    root: Path
    fresh: tuple[tuple[Path, Path], ...] = ()
    """Output folders that are being made, each with the place where that is done."""

    @property
    def params(self) -> Path:
        """The only file with values."""
        return self.root / "params.yaml"

    @property
    def summary(self) -> Path:
        """All numbers of the whole pipeline."""
        return self.root / "reports" / "summary.json"

    @property
    def metrics(self) -> Path:
        """The few numbers that DVC shows of each run."""
        return self.root / "reports" / "metrics.json"

    @property
    def report_page(self) -> Path:
        """The report of one run of the whole pipeline, one HTML file."""
        return self.root / "reports" / "report.html"

    @property
    def comparison_page(self) -> Path:
        """The comparison of several runs; its table lies beside it as CSV."""
        return self.root / "reports" / "comparison.html"

    def artifact(self, stage: str) -> Path:
        """Folder of a stage's result, the input of later stages."""
        return self._now(self.root / "data" / stage)

    def report(self, stage: str) -> Path:
        """Folder of a stage's curves, pictures and run record; no stage depends on it."""
        return self._now(self.root / "reports" / stage)

    def _now(self, folder: Path) -> Path:
        for place, fresh in self.fresh:
            if folder.is_relative_to(place):
                return fresh / folder.relative_to(place)
        return folder

    def state(self, stage: str) -> Path:
        """Folder of a stage's resumable states, outside the outputs, which DVC deletes."""
        return home_of(self.root) / ".dsd" / "state" / stage

    @property
    def features(self) -> Path:
        """Folder of features of images, by content; may be deleted at any time."""
        return home_of(self.root) / ".dsd" / "features"

    @property
    def compiled(self) -> Path:
        """Folder of compiled networks, by content; may be deleted at any time."""
        return home_of(self.root) / ".dsd" / "compiled"

    @property
    def times(self) -> Path:
        """What stages took here, for estimates; may be deleted at any time."""
        return home_of(self.root) / ".dsd" / "times.json"

    @property
    def live(self) -> Path:
        """Folder of notes on stages at work, for ``watch``; each process removes its own."""
        return home_of(self.root) / ".dsd" / "live"

    @property
    def demo_page(self) -> Path:
        """What the shipped models look like."""
        return self.root / "reports" / "demo.html"

    @property
    def watch_page(self) -> Path:
        """The page that ``watch`` keeps up to date."""
        return self.root / "reports" / "watch.html"

    def lock(self, stage: str) -> Path:
        """File held while a stage writes this workspace's folders."""
        return self.root / ".dsd" / "locks" / stage

    def tracking_state(self, stage: str) -> Path:
        """Folder of MLflow runs under way: their numbers, until the tracking store has them."""
        return home_of(self.root) / ".dsd" / "tracking" / stage

    @property
    def tracking_store(self) -> Path:
        """MLflow's SQLite file."""
        return home_of(self.root) / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        """MLflow's artifact folder."""
        return home_of(self.root) / "mlartifacts"
