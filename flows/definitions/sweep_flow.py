"""The flow ``sweep``: one run of ``train`` for each combination of a grid of parameters.

With a server that has the deployment ``train``, its workers take the runs, all at the same time as
far as there are workers. Otherwise they run here, one after the other, with the same result.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from httpx import TransportError
from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Completed, Failed
from pydantic import Field

from dsd.utils.errors import DsdError, ParamsError
from flows.definitions.overrides import SweepParam, differences, expand_grid, to_overrides
from flows.definitions.results import DISTANCES, Row, figure_lines
from flows.definitions.train_flow import refuse_push_to_nowhere, train
from flows.dvc.experiment import REPORTS, check_name, check_named_files, default_name
from flows.dvc.repository import check_home
from flows.runtime.environment import ROOT
from flows.runtime.run_records import forget_run, register_run
from flows.runtime.stopping import end_soon_when_stopped
from flows.services.prefect_server import ServerError
from pipeline.params.model import Params
from pipeline.params.reader import preview_params
from pipeline.stage_io.paths import Paths

__all__ = ["DEPLOYMENT", "check_sweep", "sweep"]

DEPLOYMENT = "train/train"
"""The deployment whose workers take the runs of a sweep."""

_SWEEPS = Path("reports") / "sweeps"
_POLL_S = 3.0


@dataclass
class _Run:
    values: Mapping[str, Any]
    name: str
    overrides: Mapping[str, Any]
    flow_run: UUID | None = None
    state: State[Any] | None = None
    distances: list[Row] = field(default_factory=list)
    evaluation: str | None = None
    """Id of the MLflow run of its evaluation."""

    @property
    def completed(self) -> bool:
        return self.state is not None and self.state.is_completed()


def _run_name() -> str:
    """The parameters that vary and their values: ``sigma 0.2, 0.4; divergence sid, dmd``."""
    given = flow_run.parameters
    params = [SweepParam.model_validate(one) for one in given["grid"]]
    texts = [f"{one.key.rpartition('.')[2]} {', '.join(one.values)}" for one in params]
    return "; ".join([*([given["name"]] if given["name"] else []), *texts])


@flow(
    name="sweep",
    flow_run_name=_run_name,
    on_running=[register_run, end_soon_when_stopped],
    on_completion=[forget_run],
    on_failure=[forget_run],
)
def sweep(
    grid: Annotated[list[SweepParam], Field(min_length=1)], name: str = "", push: bool = False
) -> State[None]:
    """Run all combinations of parameters, each as a DVC experiment, and compare them.

    What DVC has in its cache is not computed again: the same sweep, started once more, goes on.

    Args:
        grid: The parameters that vary, with their values.
        name: Folder of the comparison in reports/sweeps; made of the parameters' names if empty.
        push: Send the results of each run to the default DVC remote.

    Raises:
        ParamsError: A combination is not valid; nothing has run then.
        DvcError: There is no commit, or no remote to push to.
        ServerError: The server has the deployment, but no worker is there to run it.
    """
    runs, name = check_sweep(grid, name, push=push)
    if _has_deployment():
        _run_by_workers(runs, name, push=push)
    else:
        for run in runs:
            run.state = train(overrides=run.overrides, name=run.name, push=push, return_state=True)
            run.flow_run = run.state.state_details.flow_run_id
            _show_so_far(runs, name)
    return _conclude(runs, [param.key for param in grid], name)


def check_sweep(grid: Sequence[SweepParam], name: str, *, push: bool) -> tuple[list[_Run], str]:
    """Refuse a sweep that cannot succeed, before anything is started.

    Returns:
        All combinations, and the folder's name.

    Raises:
        ParamsError: Combinations or the name are not valid; one line for each mistake.
        DataError: The parameters name a file that an experiment cannot see.
        DvcError: There is no commit, or no remote to push to.
    """
    found: list[tuple[dict[str, Any], Params]] = []
    mistakes: dict[str, str] = {}
    for values in expand_grid(grid):
        try:
            found.append((values, preview_params(ROOT, values)))
        except ParamsError as error:
            shown = ", ".join(f"{key}={value}" for key, value in values.items())
            for line in str(error).splitlines():
                mistakes.setdefault(line, f"the combination {shown} is not valid: {line}")
    if mistakes:
        raise ParamsError("\n".join(mistakes.values()))
    if push:
        refuse_push_to_nowhere(ROOT)
    check_home(ROOT)
    name = name or "-".join(one.key.rpartition(".")[2].replace("_", "-") for one in grid)
    check_name(name)
    for _, params in found:
        check_named_files(ROOT, params)
    return [
        _Run(values, default_name(ROOT, values, params), to_overrides(values, params))
        for values, params in found
    ], name


def _has_deployment() -> bool:
    """Whether there is a lasting server that knows the deployment.

    Raises:
        ServerError: There is, but no worker that would run it.
    """
    if not get_current_settings().api.url:
        return False
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            get_run_logger().info("the server has no deployment %s: running here", DEPLOYMENT)
            return False
        pool = deployment.work_pool_name or ""
        workers = client.read_workers_for_work_pool(pool)
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        msg = (
            f"no worker of the pool {pool!r} is online, so nothing would run: start some with "
            "`python -m flows.services workers`, on this machine or another one"
        )
        raise ServerError(msg)
    return True


def _run_by_workers(runs: Sequence[_Run], name: str, *, push: bool) -> None:
    """All runs at the same time, as far as there are workers; cancelled if this flow is."""
    try:
        for run in runs:
            submitted = run_deployment(
                DEPLOYMENT,
                parameters={"overrides": run.overrides, "name": run.name, "push": push},
                flow_run_name=run.name,
                tags=[f"sweep {name}"],
                timeout=0,
            )
            assert isinstance(submitted, FlowRun)  # in a flow that is not async
            run.flow_run = submitted.id
        _wait(runs, name)
    except BaseException:
        _cancel(runs)
        raise


def _wait(runs: Sequence[_Run], name: str) -> None:
    """Until all runs have ended; a server that is away for a while is waited for."""
    say = get_run_logger().info
    while waiting := [run for run in runs if run.state is None]:
        time.sleep(_POLL_S)
        with suppress(TransportError), get_client(sync_client=True) as client:
            for run in waiting:
                assert run.flow_run is not None
                state = client.read_flow_run(run.flow_run).state
                if state is not None and state.is_final():
                    run.state = state
                    say("%s: %s", run.name, state.name)
                    _show_so_far(runs, name)


def _show_so_far(runs: Sequence[_Run], name: str) -> None:
    """Show how many runs are done, and Figure 1 of those whose results are in this folder.

    A server that does not answer, or a run that cannot be drawn, costs this picture alone.
    """
    done = [run for run in runs if run.state is not None]
    lines = [f"{len(done)} of {len(runs)} runs of sweep {name} are done.", ""]
    lines += [f"- {differences(run.values)}: {run.state.name}" for run in done if run.state]
    try:
        folders = [ROOT / REPORTS / run.name for run in done if run.completed]
        lines += ["", *figure_lines([folder for folder in folders if folder.is_dir()])]
        create_markdown_artifact(
            "\n".join(lines), key="so-far", description=f"Sweep {name} so far"
        )
    except Exception as error:  # whatever the client raises
        get_run_logger().warning("the sweep so far cannot be shown now: %s", error)


def _cancel(runs: Sequence[_Run]) -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            if run.flow_run is not None and run.state is None:
                client.set_flow_run_state(run.flow_run, Cancelling())


def _conclude(runs: Sequence[_Run], keys: Sequence[str], name: str) -> State[None]:
    """Table, page and final state."""
    with get_client(sync_client=True) as client:
        for run in runs:
            _collect(client, run)
    create_table_artifact([_row(run) for run in runs], key="sweep", description=f"Sweep {name}")
    page = _compare([run for run in runs if run.completed], ROOT / _SWEEPS / name)
    create_markdown_artifact(page, key="comparison", description=f"Comparison of sweep {name}")
    get_run_logger().info(page)
    failed = [run.name for run in runs if not run.completed]
    if failed:
        return Failed(message=f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
    return Completed(message=f"all {len(runs)} runs completed")


def _collect(client: SyncPrefectClient, run: _Run) -> None:
    """What a run has shown: on the server, because it may have been on another machine."""
    if run.flow_run is None:
        return
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.flow_run]))
    tables = {
        artifact.key: json.loads(str(artifact.data))
        for artifact in client.read_artifacts(artifact_filter=wanted)
        if artifact.key in ("stages", "distances")
    }
    run.distances = tables.get("distances", [])
    evaluations = [row for row in tables.get("stages", []) if row["stage"] == "evaluate"]
    run.evaluation = next((row["MLflow run"] for row in evaluations if row["MLflow run"]), None)


def _row(run: _Run) -> Row:
    found = {
        f"{row['images of']}: {title}": float(f"{row[title]:.4g}")
        for row in run.distances
        for title in DISTANCES.values()
        if row[title] is not None
    }
    state = run.state.name if run.state is not None else "Unknown"
    return {**run.values, "state": state, **found, "experiment": run.name}


def _compare(runs: Sequence[_Run], folder: Path) -> str:
    """Write the page that compares runs, the paper's Figure 1 among it; what to tell the user."""
    # Late, because drawing takes a second to import.
    from pipeline.reports.compare import compare

    with chdir(ROOT):  # so that the page names folders as a person in the workspace does
        # Where `python -m pipeline compare` finds a run: its folder here, or MLflow.
        folders = [(run, REPORTS / run.name) for run in runs]
        found = [str(at) if at.is_dir() else run.evaluation for run, at in folders]
        sources = [source for source in found if source is not None]
        if not sources:
            return "There is no page of comparison, because no run has results."
        try:
            return "\n\n".join(compare(sources, Paths(ROOT), folder / "comparison.html"))
        except DsdError as error:
            return f"There is no page of comparison: {error}"
