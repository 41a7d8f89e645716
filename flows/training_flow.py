"""The flow ``train``: one Prefect task for each stage of dvc.yaml.

Prefect adds retries, schedules, logs and a history; it restates neither the order of the stages
nor what is up to date.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.dvc_runner import (
    DvcError,
    StageFailedError,
    StageOutcome,
    has_remote,
    push,
    run_stage,
    stages_in_order,
)
from flows.environment import ROOT
from pipeline.paths import Paths

__all__ = ["bring_up_to_date", "send_to_remote", "summary_table", "train"]

_DISTANCES = ("frechet", "proximal_frechet")
_WORDS = {
    "ran": "ran",
    "cached": "unchanged",
    "restored": "restored from DVC's run-cache",
}


def _was_killed(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A killed stage is worth another try; a stage that refuses its input will refuse it again."""
    return isinstance(state.data, StageFailedError) and state.data.was_killed


@task(
    task_run_name="{stage}",
    retries=2,
    retry_delay_seconds=[5, 60],
    retry_condition_fn=_was_killed,
    # DVC is the only judge of what is up to date.
    cache_policy=NO_CACHE,
)
def bring_up_to_date(stage: str, force: bool) -> State[None]:
    """Run ``dvc repro`` for one stage; the state is ``Cached`` when DVC had nothing to run."""
    # The name under which Prefect's own workers tell it; the stage's MLflow run is tagged with it.
    identity = {"PREFECT__FLOW_RUN_ID": str(flow_run.id)}
    done = run_stage(ROOT, stage, get_run_logger().info, force=force, environment=identity)
    return Completed(name="Completed" if done.outcome == "ran" else "Cached", message=_told(done))


@task(task_run_name="push", cache_policy=NO_CACHE)
def send_to_remote() -> None:
    """Push artifacts and run records to the default DVC remote."""
    push(ROOT, get_run_logger().info)


@flow(name="train")
def train(force: bool = False, push: bool = False) -> None:
    """Bring every stage of dvc.yaml up to date, in DVC's order.

    Args:
        force: Run all stages, even unchanged ones.
        push: Send the results to the default DVC remote at the end.

    Raises:
        DvcError: No remote is configured to push to (nothing has run then), or DVC failed.
        StageFailedError: A stage failed; those after it have not run.
    """
    if push and not has_remote(ROOT):
        message = (
            "push is on but no default DVC remote is configured: "
            "add one with `dvc remote add --default NAME URL`, or leave push off"
        )
        raise DvcError(message)
    table = []
    for stage in stages_in_order(ROOT):
        state = bring_up_to_date(stage, force, return_state=True)
        state.result()  # raises the stage's error and so ends the flow
        table.append({"stage": stage, "state": state.name, "what happened": state.message})
    if push:
        send_to_remote()
    _publish(table)


def summary_table(summary: Mapping[str, Any]) -> str:
    """Markdown table of ``reports/summary.json``: each model's headline distances."""
    features = summary["protocol"]["features"]
    lines = [f"| images | Frechet ({features}) | Proximal Frechet ({features}) |", "|---|---|---|"]
    for name, row in summary.items():
        if isinstance(row, Mapping) and "frechet" in row:
            cells = [name.replace("_", " "), *map(_number, map(row.get, _DISTANCES))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _publish(table: Sequence[Mapping[str, Any]]) -> None:
    """Show what happened and the resulting numbers with the flow run."""
    create_table_artifact([dict(row) for row in table], key="stages", description="Stages")
    summary = Paths(ROOT).summary
    if summary.is_file():
        create_markdown_artifact(summary_table(json.loads(summary.read_text())), key="result")


def _told(done: StageOutcome) -> str:
    return f"{_WORDS[done.outcome]} ({done.seconds:.1f} s)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
