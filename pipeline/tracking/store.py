"""MLflow itself: what is done in a tracking store with a run that is described on local disk."""

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException

from dsd.utils.errors import DataError
from dsd.utils.files import read_json
from pipeline.execution.locks import blocking_lock
from pipeline.runtime.addresses import database_of, remove_stray_folder, sqlite_address
from pipeline.runtime.proxies import ask_local_servers_directly
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES
from pipeline.tracking.champion import update_champion
from pipeline.tracking.pictures import log_pictures, pictures_of
from pipeline.tracking.pipeline_run import (
    child_tags,
    close_pipeline,
    conclude,
    join_pipeline,
    log_params,
)
from pipeline.tracking.session import Record, Session

__all__ = [
    "MODEL_NAME",
    "RUN_FILE",
    "Store",
    "make_database",
    "now_ms",
    "quiet_client",
    "shown_uri",
]

MODEL_NAME = "one-step-generator"
"""Name of the registered model."""

RUN_FILE = "run.json"
"""File in ``reports/<stage>`` that says which run made the stage."""

# The most that MLflow takes in one call.
_BATCH = 1000
_DIGEST_LENGTH = 32
_TOKEN_TAG = "token"
# Otherwise MLflow opens the experiment on pages about language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_AS_INPUT = InputTag("mlflow.data.context", "input")
_ATTACHED = {".png", ".csv", ".json", ".html"}


@final
class Store:
    """An MLflow tracking store, and what is done there with a session.

    All methods may raise whatever MLflow raises, and can be called again afterwards.
    """

    def __init__(self, uri: str, paths: Paths) -> None:
        self.uri, self._paths = uri, paths
        self.shown_uri = shown_uri(uri, paths)
        self._client: MlflowClient | None = None
        self._opened: set[str] = set()

    def flush(self, session: Session) -> None:
        """Create or re-open the run if need be, and send all numbers that it has not got yet."""
        client, run_id = self._connect(session)
        batch, end = list[Metric](), session.record.sent
        for entry in session.journal.entries(end):
            new = [
                Metric(_metric_name(name), value, entry.milliseconds, entry.images)
                for name, value in entry.values.items()
            ]
            if batch and len(batch) + len(new) > _BATCH:
                _send(client, run_id, session, batch, end)
                batch = []
            batch, end = batch + new, entry.end
        if batch:
            _send(client, run_id, session, batch, end)

    def complete(self, session: Session, report: Path | None) -> None:
        """Attach files, register the model and end the run, each step once.

        The session is flushed and its stage has ended. ``report`` is the folder of the files;
        None if they belong to another run by now.
        """
        record = session.record
        client, run_id = self._connect(session)
        datasets = [DatasetInput(_dataset(known), [_AS_INPUT]) for known in record.datasets]
        if datasets:
            self._once(session, "datasets", lambda: client.log_inputs(run_id, datasets=datasets))
        # Of a run that did not finish there are none: the folder is still that of an earlier one.
        if report is not None and record.status == "FINISHED":
            self._once(session, "files", lambda: self._attach(session, report))
            if record.stage == "distill":
                self._once(session, "model", lambda: self._register(session))
            self._once(session, "pictures", lambda: self._show_pictures(session, report))
            if record.stage == "evaluate":
                self._once(session, "champion", lambda: self._conclude(session))
        self._once(session, "end", lambda: self._end(session))
        remove_stray_folder(self.uri)
        if session.is_over():
            session.remove()

    def settle(self, session: Session) -> bool:
        """Bring an abandoned session to its end; False if there was nothing left to do."""
        record = session.record
        if "end" in record.completed_steps:
            if session.is_over():  # its process was killed just before it did this
                session.remove()
            return False
        if record.was_interrupted():
            session.end("KILLED", now_ms())
        self.flush(session)
        self.complete(session, self._report_of(record))
        return True

    def _connect(self, session: Session) -> tuple[MlflowClient, str]:
        """A client, and the id of the session's run, which exists now."""
        if self._client is None or session.record.token not in self._opened:
            make_database(self.uri)
            self._client = self._client or quiet_client(self.uri)
            self._open(self._client, session)
            self._opened.add(session.record.token)
        assert session.record.run_id is not None
        return self._client, session.record.run_id

    def _open(self, client: MlflowClient, session: Session) -> None:
        record = session.record
        if record.run_id is not None and not _is_there(client, record.run_id):
            record.run_id, record.sent = None, 0
        if record.parent_id is not None and not _is_there(client, record.parent_id):
            record.parent_id = None
        experiment = _experiment_id(client, record.experiment, self._artifact_location())
        if record.run_id is None:
            record.run_id = _created_before(client, experiment, record.token)
        if record.parent_id is None:
            record.parent_id = join_pipeline(client, experiment, record)
        else:
            client.update_run(record.parent_id, status="RUNNING")
        if record.run_id is None:
            created = client.create_run(
                experiment,
                start_time=record.started_ms,
                run_name=record.name,
                tags={_TOKEN_TAG: record.token},
            )
            record.run_id = created.info.run_id
        else:
            client.update_run(record.run_id, status="RUNNING")
        session.save()
        tags = {**record.tags, **child_tags(experiment, record)}
        log_params(client, record.run_id, record.params, tags)

    def _once(self, session: Session, step: str, act: Callable[[], None]) -> None:
        if step not in session.record.completed_steps:
            act()
            session.record.completed_steps.append(step)
            session.save()

    def _attach(self, session: Session, report: Path) -> None:
        client, run_id = self._connect(session)
        for file in sorted(report.rglob("*")):
            if file.suffix in _ATTACHED and file.is_file() and file.name != RUN_FILE:
                folder = file.relative_to(report).parent.as_posix()
                client.log_artifact(run_id, str(file), folder.strip("."))
        if session.record.stage == "evaluate":
            for file in filter(Path.is_file, (self._paths.summary, self._paths.report_page)):
                client.log_artifact(run_id, str(file))

    def _end(self, session: Session) -> None:
        """End the run, and with the last of its stages the run of the pipeline."""
        client, run_id = self._connect(session)
        record = session.record
        client.set_terminated(run_id, record.status, record.ended_ms)
        if record.parent_id is not None:
            close_pipeline(client, record.parent_id)

    def _show_pictures(self, session: Session, report: Path) -> None:
        """Log a stage's images with the pipeline's run, as pipelines are what is compared."""
        client, run_id = self._connect(session)
        record = session.record
        log_pictures(
            client, record.parent_id or run_id, pictures_of(record.stage, report), record.ended_ms
        )

    def _conclude(self, session: Session) -> None:
        """Repeat the evaluation's numbers where they are looked for, and link what they are of."""
        client, run_id = self._connect(session)
        summary = read_json(self._paths.summary)
        run = client.get_run(run_id)
        version = update_champion(client, MODEL_NAME, run, summary)
        if session.record.parent_id is not None:
            conclude(client, session.record.parent_id, run, version, self._run_ids())

    def _run_ids(self) -> dict[str, str]:
        """The MLflow run that made each stage's present result, of stages that know it."""
        found = {}
        for stage in STAGES:
            with suppress(OSError, DataError):
                found[stage] = read_json(self._paths.report(stage) / RUN_FILE).get("run_id")
        return {stage: run_id for stage, run_id in found.items() if run_id}

    def _register(self, session: Session) -> None:
        # Late, because it imports torch, which only this step of this stage needs.
        from pipeline.tracking.registry import register_generator

        _, run_id = self._connect(session)
        generator = self._paths.artifact("distill") / "generator"
        register_generator(generator, run_id=run_id, name=MODEL_NAME, tracking_uri=self.uri)

    def _report_of(self, record: Record) -> Path | None:
        """The stage's report in this workspace, if it is still the one that this run made."""
        report = self._paths.report(record.stage)
        try:
            made_by = read_json(report / RUN_FILE)
        except (OSError, DataError):
            return None
        made_here = isinstance(made_by, dict) and made_by.get("token") == record.token
        return report if made_here else None

    def _artifact_location(self) -> str | None:
        """Where a local store keeps files; a server decides for itself."""
        local = database_of(self.uri) is not None
        return self._paths.tracking_artifacts.resolve().as_uri() if local else None


def make_database(uri: str) -> None:
    """Make the file of a new SQLite store, whole or not at all; leave any other store alone.

    MLflow makes the tables of a new file one by one when it is first used. If two processes do
    so at once both fail; if one is killed meanwhile the file can never be used again.
    """
    database = database_of(uri)
    if database is None or database.exists():
        return
    with blocking_lock(database.with_name(f"{database.name}.lock")):
        if not database.exists():
            part = database.with_name(f"{database.name}.part")
            for left in (part, part.with_name(f"{part.name}-journal")):
                left.unlink(missing_ok=True)
            quiet_client(sqlite_address(part)).search_experiments(max_results=1)
            part.replace(database)


def shown_uri(uri: str, paths: Paths) -> str:
    """The URI without secrets, and without this machine's folders for the project's own store."""
    if uri == sqlite_address(paths.tracking_store):
        return f"sqlite:///{paths.tracking_store.name}"
    parts = urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else uri


def quiet_client(uri: str) -> MlflowClient:
    """A client of a store, which is also the registry; it prints warnings alone."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    ask_local_servers_directly()
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    remove_stray_folder(uri)
    return client


def _experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location, tags=_KIND)
        except MlflowException:  # another process made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    experiment: str = found.experiment_id
    return experiment


def _created_before(client: MlflowClient, experiment_id: str, token: str) -> str | None:
    """The run of a process that was killed before it could note the run's id."""
    found = client.search_runs([experiment_id], f"tags.{_TOKEN_TAG} = '{token}'")
    return found[0].info.run_id if found else None


def _is_there(client: MlflowClient, run_id: str) -> bool:
    try:
        stage: str = client.get_run(run_id).info.lifecycle_stage
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return stage == "active"


def _send(
    client: MlflowClient, run_id: str, session: Session, batch: list[Metric], end: int
) -> None:
    # If the process dies between these lines the batch is sent again; MLflow keeps one of
    # equal numbers with equal times.
    client.log_batch(run_id, metrics=batch)
    session.record.sent = end
    session.save()


def _dataset(known: Mapping[str, Any]) -> Dataset:
    shape = json.dumps({"shape": known["shape"]})
    profile = json.dumps({"num_images": known["count"]})
    source = json.dumps({"uri": known["name"]})
    digest = known["digest"][:_DIGEST_LENGTH]
    return Dataset(known["name"], digest, "local", source, schema=shape, profile=profile)


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's time."""
    return time.time_ns() // 1_000_000
