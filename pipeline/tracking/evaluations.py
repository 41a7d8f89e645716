"""Finished evaluations in a tracking store, for the comparison of runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.tracking import SEARCH_MAX_RESULTS_THRESHOLD

from pipeline.runtime.addresses import database_of
from pipeline.tracking.store import quiet_client

__all__ = ["Evaluation", "finished_evaluations"]


@final
@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: what is known of it, and how to fetch its files.

    ``params`` are text by dotted key.
    """

    run_id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    client: MlflowClient

    def fetch(self, folder: Path) -> tuple[Path, Path | None] | None:
        """Copy summary and picture of the generator's images (None without one) to ``folder``.

        Returns:
            None for a run whose files never arrived.
        """
        target = folder / self.run_id
        target.mkdir()
        kept = {file.path for file in self.client.list_artifacts(self.run_id)}
        if "summary.json" not in kept:
            return None
        summary = Path(self.client.download_artifacts(self.run_id, "summary.json", str(target)))
        if "samples" not in kept:
            return summary, None
        samples = Path(self.client.download_artifacts(self.run_id, "samples", str(target)))
        return summary, samples / "generator.png"


def finished_evaluations(uri: str, experiment: str) -> list[Evaluation]:
    """All finished evaluations of an experiment, oldest first."""
    database = database_of(uri)
    if database is not None and not database.is_file():
        return []  # connecting would make an empty store
    client = quiet_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs: list[Run] = client.search_runs(
        [found.experiment_id],
        "tags.`dvc.stage` = 'evaluate' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
        max_results=SEARCH_MAX_RESULTS_THRESHOLD,
    )
    return [
        Evaluation(
            run.info.run_id,
            (run.info.run_name or "").removeprefix("evaluate: "),
            run.data.params,
            run.data.tags,
            client,
        )
        for run in runs
    ]
