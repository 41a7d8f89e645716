"""The flow ``train``: one Prefect task for each stage of dvc.yaml.

Prefect adds retries, schedules, logs and a history; it restates neither the order of the stages
nor what is up to date.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed

from dsd.utils.errors import DsdError
from flows.definitions.overrides import (
    AS_IT_IS,
    Overrides,
    Preset,
    Settings,
    chosen_values,
    differences,
)
from flows.definitions.results import Row, distance_rows, result_page, stage_row
from flows.definitions.stage_progress import StageProgress
from flows.dvc.experiment import (
    check_name,
    check_named_files,
    default_name,
    keep_report,
    save_experiment,
    workspace_copy,
)
from flows.dvc.repository import check_home
from flows.dvc.runner import (
    DvcError,
    StageFailedError,
    default_remote,
    planned_stages,
    push,
    run_stage,
)
from flows.dvc.stage_lock import stage_lock
from flows.runtime.environment import ROOT
from flows.runtime.run_records import forget_run, register_run
from flows.runtime.stopping import end_soon_when_stopped
from pipeline.params.model import Params
from pipeline.params.reader import load_params, preview_params
from pipeline.stage_io.paths import Paths
from pipeline.tracking.provenance import commit_of

__all__ = ["bring_up_to_date", "check_run", "refuse_push_to_nowhere", "send_to_remote", "train"]

_MESSAGES = {
    "ran": "ran",
    "cached": "unchanged",
    "restored": "restored from DVC's run-cache",
}
_NONE: Overrides = {}
_NO_SETTINGS: Settings = []


def _drop_traceback(record: logging.LogRecord) -> bool:
    """Log errors whose message says all to the user without the code's lines."""
    if record.exc_info and isinstance(record.exc_info[1], DsdError):
        record.exc_info = None
    return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_logger).addFilter(_drop_traceback)


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
def bring_up_to_date(
    root: Path, stage: str, force: bool, environment: Mapping[str, str]
) -> State[None]:
    """Run ``dvc repro`` for one stage; the state is named Ran, Cached or Restored."""
    say = get_run_logger().info
    progress = StageProgress(stage)

    def on_line(line: str) -> None:
        if line.strip():
            say(line)
        progress.read(line)

    done = run_stage(root, stage, on_line, force=force, environment=environment)
    progress.finish()
    message = f"{_MESSAGES[done.outcome]} ({done.seconds:.1f} s)"
    return Completed(name=done.outcome.capitalize(), message=message)


@task(task_run_name="push", cache_policy=NO_CACHE)
def send_to_remote(root: Path) -> None:
    """Push artifacts and run records to the default DVC remote."""
    push(root, get_run_logger().info)


def _run_name() -> str:
    """What the run changes; mistakes are left to the flow, which explains them."""
    given = flow_run.parameters
    if given["name"]:
        return str(given["name"])
    try:
        values = chosen_values(AS_IT_IS, given["overrides"], given["settings"], load_params(ROOT))
    except DsdError:
        return "not valid"
    preset = [] if given["preset"] == AS_IT_IS else [given["preset"]]
    return ", ".join([*preset, *([differences(values)] if values else [])]) or AS_IT_IS


@flow(
    name="train",
    flow_run_name=_run_name,
    on_running=[register_run, end_soon_when_stopped],
    on_completion=[forget_run],
    on_failure=[forget_run],
)
def train(
    preset: Preset = AS_IT_IS,
    overrides: Overrides = _NONE,
    settings: Settings = _NO_SETTINGS,
    name: str = "",
    force: bool = False,
    push: bool = False,
) -> None:
    """Bring every stage of dvc.yaml up to date, in DVC's order.

    Args:
        preset: Values to begin with. With any other value than those of params.yaml the run is
            made in a copy of the workspace and kept as a DVC experiment; the workspace stays as
            it is.
        overrides: Shown as they are in params.yaml; what you change replaces the preset's.
        settings: Any other keys, one a line, such as `pretrain.batch_size=64` (docs/params.md).
        name: Of the experiment; made of the changed values if there is none.
        force: Run all stages, even unchanged ones.
        push: Send the results to the default DVC remote at the end.

    Raises:
        ParamsError: The resulting parameters are not valid, or the name belongs to another
            experiment.
        DvcError: No remote is configured to push to, or DVC failed.
        StageFailedError: A stage failed; those after it have not run.
    """
    values = chosen_values(preset, overrides, settings, load_params(ROOT))
    params, name = check_run(values, name, push=push)
    if name:
        _run_experiment(name, values, force=force, push=push)
    else:
        _run_stages(ROOT, params, {}, force=force)
        if push:
            send_to_remote(ROOT)
        _publish_result(ROOT, Paths(ROOT).report_page, None)


def check_run(values: Mapping[str, Any], name: str, *, push: bool) -> tuple[Params, str]:
    """Refuse a run of :func:`train` that cannot succeed, before anything is started.

    Returns:
        All parameters that result, and the experiment's name; empty for the workspace itself.

    Raises:
        ParamsError: The resulting parameters or the name are not valid.
        DataError: The parameters name a file that an experiment cannot see.
        DvcError: There is no commit for an experiment, or no remote to push to.
    """
    params = preview_params(ROOT, values)
    if push:
        refuse_push_to_nowhere(ROOT)
    if values or name:
        check_home(ROOT)
        name = name or default_name(ROOT, values, params)
        check_name(name)
        check_named_files(ROOT, params)
    return params, name


def _run_experiment(name: str, values: Mapping[str, Any], *, force: bool, push: bool) -> None:
    say = get_run_logger().info
    with workspace_copy(ROOT, name, values, say) as root:
        say(f"experiment {name}")
        identity = {"DVC_EXP_NAME": name, "DVC_EXP_BASELINE_REV": commit_of(root) or ""}
        _run_stages(root, load_params(root), identity, force=force)
        save_experiment(ROOT, root, name, say)
        if push:
            send_to_remote(root)
        folder = keep_report(ROOT, root, name)
        _publish_result(root, folder / "report.html", name)


def _run_stages(root: Path, params: Params, variables: Mapping[str, str], *, force: bool) -> None:
    """Bring all stages up to date, one after the other, and show what happened."""
    # The name under which Prefect's own workers pass it; the stage's MLflow run is tagged with it.
    environment = {**variables, "PREFECT__FLOW_RUN_ID": str(flow_run.id)}
    rows: list[Row] = []
    for stage in planned_stages(root):
        with stage_lock(ROOT, stage, params, get_run_logger().info):
            state = bring_up_to_date(root, stage.name, force, environment, return_state=True)
        rows.append(stage_row(root, stage.name, state.name or "", state.message or ""))
        if not state.is_completed():
            break
    create_table_artifact(rows, key="stages", description="Stages")
    state.result()  # raises the stage's error and so ends the flow


def _publish_result(root: Path, page: Path, experiment: str | None) -> None:
    rows = distance_rows(root)
    if rows:
        report = page.relative_to(ROOT) if page.is_file() else None
        create_table_artifact(rows, key="distances", description="Distances of this run")
        create_markdown_artifact(result_page(root, rows, report, experiment), key="result")


def refuse_push_to_nowhere(root: Path) -> None:
    """Make sure that there is a remote to push to, before anything is computed.

    Raises:
        DvcError: No remote is configured.
    """
    if default_remote(root) is None:
        message = (
            "push is on but no default DVC remote is configured: "
            "add one with `dvc remote add --default NAME URL`, or leave push off"
        )
        raise DvcError(message)
