"""Tracking of a stage: one MLflow run for each execution, whatever happens to stage or store.

Numbers go to a journal on local disk first; a background thread alone talks to the store. A dead
or slow store therefore costs a stage a warning and, at its end, a wait of at most
``_CLOSE_SECONDS``; ``python -m pipeline sync`` sends later what it has missed.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import final

from tqdm import tqdm

from dsd.utils.errors import DataError, Interrupted
from dsd.utils.files import read_json, write_json
from pipeline.params.differences import level_of, run_name
from pipeline.params.model import Params
from pipeline.params.reader import flatten
from pipeline.runtime.addresses import tracking_address
from pipeline.runtime.progress import doing, make_progress, say
from pipeline.runtime.proxies import through_proxy
from pipeline.runtime.signals import StopSignal
from pipeline.stage_io.log import Progress
from pipeline.stage_io.paths import Paths
from pipeline.tracking.evaluations import Evaluation, finished_evaluations
from pipeline.tracking.headline import headlines
from pipeline.tracking.journal import NONFINITE_FAILURES
from pipeline.tracking.pipeline_run import ID_TAG, pipeline_id
from pipeline.tracking.provenance import commit_of, is_dirty
from pipeline.tracking.session import Record, Session, abandoned_sessions, open_session
from pipeline.tracking.store import RUN_FILE, Store, now_ms
from pipeline.tracking.system_metrics import SystemMetrics

__all__ = ["RunTracker", "evaluations", "run", "sync"]

_SEND_SECONDS = 5.0
_CLOSE_SECONDS = {"FINISHED": 300.0, "FAILED": 20.0, "KILLED": 5.0}
_MAX_TAG = 4000


@contextmanager
def run(
    stage: str, params: Params, paths: Paths, *, stop: StopSignal | None = None
) -> Iterator["RunTracker"]:
    """Track one execution of a stage; the block's end says whether it finished.

    Each run has all parameters, so that runs of any stage compare.
    """
    log = RunTracker(stage, params, paths, StopSignal() if stop is None else stop)
    try:
        yield log
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | Interrupted)
        log.close("KILLED" if killed else "FAILED")
        raise
    log.finish()


def sync(paths: Paths) -> tuple[int, int]:
    """Send what stages that have ended could not send.

    Returns:
        How many runs are now complete in the store, and how many still wait.
    """
    root = paths.tracking_state("")
    complete = waiting = 0
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        for session in abandoned_sessions(folder):
            store = Store(session.record.uri, paths)
            try:
                complete += store.settle(session)
            except Exception as error:
                waiting += 1
                _warn(f"run {session.record.name!r} still waits: {_reason(error)}")
    return complete, waiting


def evaluations(paths: Paths) -> list[Evaluation]:
    """All finished evaluations in the tracking store, oldest first."""
    return finished_evaluations(tracking_address(paths), _experiment())


@final
class RunTracker:
    """The stage's log: numbers to journal and MLflow, progress and lines to the user."""

    def __init__(self, stage: str, params: Params, paths: Paths, stop: StopSignal) -> None:
        self._stage, self._paths, self._stop = stage, paths, stop
        self._store = Store(tracking_address(paths), paths)
        self._record = _make_record(stage, params, paths, self._store.uri)
        self._session = open_session(paths.tracking_state(stage), self._record)
        self._resumed = bool(self._session.journal.first)
        self._earlier: Session | None = None
        self._guard = threading.Lock()
        self._warned = False
        self._trouble: str | None = None
        self._closing = threading.Event()
        self._system = SystemMetrics()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def metrics(self, images: int, values: Mapping[str, float]) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.metrics`."""
        self._note(lambda: self._append(images, values))

    def trains(self, name: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.trains`."""
        self._record.training = name
        self._note(lambda: self._bind_training(name))

    def nonfinite_failures(self, count: int) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.nonfinite_failures`."""
        self._note(lambda: self._append_counted({NONFINITE_FAILURES: count}))

    def reads(self, name: str, *, digest: str, count: int, shape: Sequence[int]) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.reads`."""
        known = {"name": name, "digest": digest, "count": count, "shape": list(shape)}
        with self._guard:
            for record in (self._record, self._session.record):
                if known not in record.datasets:
                    record.datasets.append(known)

    def progress(self, total_images: int) -> Progress:
        """See :meth:`pipeline.stage_io.log.StageLog.progress`."""
        return make_progress(self._stage, total_images)

    def say(self, text: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.say`."""
        say(text)

    def doing(self, text: str) -> None:
        """See :meth:`pipeline.stage_io.log.StageLog.doing`."""
        doing(text)

    def stop_signal(self) -> int | None:
        """See :meth:`pipeline.stage_io.log.StageLog.stop_signal`."""
        return self._stop.number

    def finish(self) -> None:
        """The stage is done: complete the run and write ``reports/<stage>/run.json``."""
        if self._stage == "evaluate":
            self.metrics(0, _headlines(self._paths.summary))
        self.close("FINISHED")
        self._write_run_file()

    def close(self, status: str) -> None:
        """End the run with MLflow's ``status``; bounded in time, and never raises for a store."""
        self._note(lambda: self._session.end(status, now_ms()))
        self._closing.set()
        self._join(_CLOSE_SECONDS[status])
        self._note(self._session.mark_handed_off)
        if self._thread.is_alive():
            self._on_store_error(TimeoutError("the tracking store is too slow"))
        else:
            self._session.release()

    def _note(self, act: Callable[[], None]) -> None:
        try:
            with self._guard:
                act()
        except OSError as error:
            self._on_store_error(error)

    def _append(self, images: int, values: Mapping[str, float]) -> None:
        """Record numbers; in a new run if a stage without states begins with other ones.

        A training that resumed may repeat all its numbers: the same ones.
        """
        first = self._session.journal.first
        known = first.keys() & values.keys()
        if self._resumed and known:
            self._resumed = False
            if any(_contradicts(images, values[name], *first[name]) for name in known):
                self._start_new_run()
        self._session.journal.append(images, values, now_ms())

    def _append_counted(self, values: Mapping[str, float]) -> None:
        self._session.journal.append_counted(values, now_ms())

    def _bind_training(self, training: str) -> None:
        if self._session.record.training not in (None, training):
            self._start_new_run()
        self._session.record.training = training
        self._session.save()

    def _start_new_run(self) -> None:
        earlier = self._session
        earlier.end("KILLED", now_ms())
        earlier.archive()
        self._session = open_session(self._paths.tracking_state(self._stage), self._record)
        # Still locked, as the thread may be sending it: two at once would make two runs.
        self._earlier = earlier

    def _work(self) -> None:
        """Thread: send what there is at intervals, look after earlier runs once, and close."""
        tidied = False
        while True:
            last = self._closing.is_set()
            try:
                self._send(last)
                if not tidied and not last:
                    self._tidy()
                    tidied = True
            except Exception as error:
                self._on_store_error(error)
            if last:
                return
            if not self._closing.wait(_SEND_SECONDS):
                load = self._system.sample()
                self._note(partial(self._append_counted, load))

    def _send(self, last: bool) -> None:
        with self._guard:
            session = self._session
        self._store.flush(session)
        if last:
            self._store.complete(session, self._paths.report(self._stage))
            self._trouble = None
        if self._earlier is not None:
            self._store.settle(self._earlier)
            self._earlier.release()
            self._earlier = None

    def _tidy(self) -> None:
        for session in abandoned_sessions(self._paths.tracking_state(self._stage)):
            if session.record.uri == self._store.uri:
                self._store.settle(session)

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.2)
            if self._stop.number is not None:
                deadline = min(deadline, time.monotonic() + _CLOSE_SECONDS["KILLED"])

    def _on_store_error(self, error: Exception) -> None:
        self._trouble = _reason(error) + through_proxy(self._store.uri)
        if not self._warned:
            self._warned = True
            _warn(
                f"MLflow at {self._store.shown_uri} has not taken this run ({self._trouble}); the "
                "stage goes on, and `python -m pipeline sync` sends what is missing later"
            )

    def _write_run_file(self) -> None:
        record = self._session.record
        found = {
            "run_id": record.run_id,
            "experiment": record.experiment,
            "tracking_uri": self._store.shown_uri,
            "token": record.token,
            "seconds": round(time.monotonic() - self._started, 1),
            "reason": None if record.run_id else self._trouble,
        }
        write_json(self._paths.report(self._stage) / RUN_FILE, found)


def _contradicts(images: int, value: float, first_images: int, first_value: float) -> bool:
    """Whether a number cannot be one of those that begin with the first one."""
    return images < first_images or (images == first_images and float(value) != first_value)


def _make_record(stage: str, params: Params, paths: Paths, uri: str) -> Record:
    flat = flatten(params)
    texts = {name: "null" if value is None else str(value) for name, value in flat.items()}
    title = run_name(flat)
    whole = {ID_TAG: pipeline_id(_experiment(), texts, paths.root)}
    return Record(
        stage=stage,
        name=f"{stage}: {title}",
        experiment=_experiment(),
        uri=uri,
        params=texts,
        tags=_tags(stage, params, paths.root) | whole,
        started_ms=now_ms(),
        title=title,
    )


def _tags(stage: str, params: Params, root: Path) -> dict[str, str]:
    dirty = is_dirty(root)
    tags = {
        "dvc.stage": stage,
        "dvc.exp": os.environ.get("DVC_EXP_NAME"),
        "dvc.exp.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "mlflow.source.name": f"python -m pipeline {stage}",
        "mlflow.source.git.commit": commit_of(root),
        "git.dirty": None if dirty is None else str(dirty).lower(),
        "prefect.flow_run_id": os.environ.get("PREFECT__FLOW_RUN_ID"),
        "sigma": level_of(flatten(params)).removeprefix("sigma "),
        "source": params.data.name or params.data.path,
    }
    return {name: value[:_MAX_TAG] for name, value in tags.items() if value}


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "dsd")


def _headlines(summary: Path) -> dict[str, float]:
    """The dozen numbers of the summary by which runs are compared."""
    try:
        return headlines(read_json(summary))
    except (OSError, DataError):
        return {}


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _warn(text: str) -> None:
    tqdm.write(f"warning: {text}", file=sys.stderr)
