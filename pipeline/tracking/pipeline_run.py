"""The MLflow run of the whole pipeline; the runs of its stages are its children.

Stages are processes that share nothing but the workspace and the store, maybe on several hosts, so
each finds the run by one rule. A workspace, an experiment and all parameters that decide results
make an id. The newest run of that id is the stage's, unless the same or a later stage had finished
in it before this stage began: then the pipeline runs once more, in a new run.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from pipeline.params.differences import changed
from pipeline.stage_io.paths import home_of
from pipeline.stages import STAGES
from pipeline.tracking.headline import HEADLINES
from pipeline.tracking.session import Record

__all__ = [
    "ID_TAG",
    "ROLE_TAG",
    "child_tags",
    "close_pipeline",
    "conclude",
    "join_pipeline",
    "link",
    "log_params",
    "pipeline_id",
]

ID_TAG = "pipeline.id"
ROLE_TAG = "pipeline.role"
"""Tag that only the run of the whole pipeline has."""

_OF_A_STAGE = ("dvc.stage", "mlflow.source.name")
_ORDER = [*STAGES]
_BATCH = 100
"""The most parameters that MLflow takes in one call."""


def pipeline_id(experiment: str, params: Mapping[str, str], root: Path) -> str:
    """Name what all stages of one run have in common; keys that decide no result do not count."""
    kept = {key: value for key, value in params.items() if not key.startswith("run.")}
    text = json.dumps(
        [experiment, kept, str(home_of(root)), os.environ.get("DVC_EXP_NAME")], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def join_pipeline(client: MlflowClient, experiment_id: str, record: Record) -> str | None:
    """Find the run of the pipeline that a stage belongs to, or make it; it is running now.

    Returns:
        The run's id; None for a record of an earlier version, which has none.
    """
    if ID_TAG not in record.tags:
        return None
    wanted = f"tags.`{ID_TAG}` = '{record.tags[ID_TAG]}' and tags.`{ROLE_TAG}` = 'pipeline'"
    newest = client.search_runs(
        [experiment_id], wanted, order_by=["attributes.start_time DESC"], max_results=1
    )
    if newest and not _is_over(client, newest[0], record):
        run_id: str = newest[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        if len(newest[0].data.params) < len(record.params):  # the process that made it was killed
            log_params(client, run_id, record.params)
        return run_id
    tags = {name: value for name, value in record.tags.items() if name not in _OF_A_STAGE}
    made = client.create_run(
        experiment_id,
        start_time=record.started_ms,
        run_name=record.title,
        tags={**tags, ROLE_TAG: "pipeline", MLFLOW_RUN_NOTE: _differences(record.params)},
    )
    log_params(client, made.info.run_id, record.params)
    return str(made.info.run_id)


def log_params(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, str],
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log all parameters and tags, in as few calls as MLflow takes."""
    items = [Param(name, value) for name, value in params.items()]
    given = [RunTag(name, value) for name, value in (tags or {}).items()]
    client.log_batch(run_id, params=items[:_BATCH], tags=given)
    for first in range(_BATCH, len(items), _BATCH):
        client.log_batch(run_id, params=items[first : first + _BATCH])


def child_tags(experiment_id: str, record: Record) -> dict[str, str]:
    """Tags that make a stage's run a child, with a description that leads to the parent."""
    if record.parent_id is None:
        return {}
    parent = link(record.title, experiment_id, record.parent_id)
    note = f"Stage `{record.stage}` of {parent}."
    return {MLFLOW_PARENT_RUN_ID: record.parent_id, MLFLOW_RUN_NOTE: note}


def close_pipeline(client: MlflowClient, run_id: str) -> None:
    """Give the run the status of the stage that ended last, unless one is running."""
    stages = _stages_of(client, client.get_run(run_id))
    if not stages or any(stage.info.status == "RUNNING" for stage in stages):
        return
    last = max(stages, key=lambda stage: stage.info.end_time or 0)
    client.set_terminated(run_id, last.info.status, last.info.end_time)


def conclude(
    client: MlflowClient,
    run_id: str,
    evaluation: Run,
    version: ModelVersion | None,
    stages: Mapping[str, str],
) -> None:
    """Repeat the numbers of an evaluation in the pipeline's run, and describe what they are of.

    Args:
        client: Of the store.
        run_id: Of the pipeline's run.
        evaluation: The run of its evaluation.
        version: Of the registered generator, if it is registered here.
        stages: The run that made each stage's result, be it of this run of the pipeline or not.
    """
    values = evaluation.data.metrics
    shown = [one for one in HEADLINES if one.name in values]
    now = evaluation.info.start_time
    client.log_batch(run_id, metrics=[Metric(one.name, values[one.name], now, 0) for one in shown])
    pipeline = client.get_run(run_id)
    _show_data(client, pipeline, evaluation)
    _show_model(client, pipeline, version)
    rows = [
        f"| `{one.name}` | {values[one.name]:.4g} | {one.better} | {one.meaning} |"
        for one in shown
    ]
    parts = [
        *_links(client, pipeline, evaluation, version, stages),
        _differences(pipeline.data.params),
        "\n".join(["| number | value | better | meaning |", "|---|---|---|---|", *rows]),
    ]
    client.set_tag(run_id, MLFLOW_RUN_NOTE, "\n\n".join(parts))


def _show_data(client: MlflowClient, pipeline: Run, evaluation: Run) -> None:
    """Link the images that the evaluation read with the pipeline's run, once."""
    datasets = evaluation.inputs.dataset_inputs if evaluation.inputs else []
    there = pipeline.inputs.dataset_inputs if pipeline.inputs else []
    known = {each.dataset.name for each in there}
    fresh = [each for each in datasets if each.dataset.name not in known]
    if fresh:
        client.log_inputs(pipeline.info.run_id, datasets=fresh)


def _show_model(client: MlflowClient, run: Run, version: ModelVersion | None) -> None:
    """Link the registered generator with the pipeline's run, once."""
    scheme, _, model_id = ("" if version is None else version.source or "").rpartition("/")
    known = run.outputs.model_outputs if run.outputs else []
    if scheme == "models:" and not any(each.model_id == model_id for each in known):
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step=0)])


def _links(
    client: MlflowClient,
    pipeline: Run,
    evaluation: Run,
    version: ModelVersion | None,
    stages: Mapping[str, str],
) -> Iterator[str]:
    """Where the report and the model are, and which stages other runs have made."""
    experiment, run_id = pipeline.info.experiment_id, evaluation.info.run_id
    links = [link("Report", experiment, run_id, "/artifacts/report.html")]
    if version is not None:
        page = f"#/models/{version.name}/versions/{version.version}"
        links.append(f"[model version {version.version}]({page})")
    yield ", ".join(links)
    ours = {stage.info.run_id for stage in _stages_of(client, pipeline)}
    reused = [
        link(stage, experiment, made_by)
        for stage, made_by in stages.items()
        if made_by not in ours and stage != "evaluate"
    ]
    if reused:
        yield f"Taken from earlier runs, because nothing changed for them: {', '.join(reused)}."


def link(text: str, experiment_id: str, run_id: str, page: str = "") -> str:
    """Markdown that opens a run in MLflow's own pages."""
    return f"[{text}](#/experiments/{experiment_id}/runs/{run_id}{page})"


def _is_over(client: MlflowClient, run: Run, record: Record) -> bool:
    """Whether the stage, or a later one, had finished in this run before the stage began."""
    return any(
        stage.info.status == "FINISHED"
        and stage.info.end_time <= record.started_ms
        and _place(stage.data.tags.get("dvc.stage", "")) >= _place(record.stage)
        for stage in _stages_of(client, run)
        if stage.info.run_id != record.run_id
    )


def _place(stage: str) -> int:
    return _ORDER.index(stage) if stage in _ORDER else -1


def _stages_of(client: MlflowClient, run: Run) -> list[Run]:
    wanted = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"
    return [*client.search_runs([run.info.experiment_id], wanted)]


def _differences(params: Mapping[str, str]) -> str:
    found = changed(params)
    if not found:
        return "All parameters have their default values."
    head = ["| differs from the defaults | here | default |", "|---|---|---|"]
    return "\n".join(head + [f"| `{key}` | {now} | {was} |" for key, (now, was) in found.items()])
