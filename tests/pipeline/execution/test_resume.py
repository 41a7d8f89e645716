"""What is kept of a training: two states, retries, its end, and who may go on with it."""

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from stage_helpers import Recorder, files_of
from tiny_stages import Stopper, run, tiny
from tiny_training import KINDS, equal, run_steps, tiny_params, weights

from dsd.training.distributed import DistributedContext
from dsd.training.state import TrainingState
from dsd.utils.errors import DataError, Interrupted, NonFiniteError
from pipeline.execution import checkpoints, origin
from pipeline.execution.checkpoints import (
    CheckpointManager,
    StateWriter,
    lock_run_dir,
    mark_finished,
    remove_finished,
)
from pipeline.execution.locks import BusyError, exclusive
from pipeline.execution.origin import Origin
from pipeline.stages import distill, pretrain
from sandbox import ROOT
from sandbox.faults import Boundaries

STAGES = {"pretrain": pretrain, "distill": distill}


def resumable(folder, state, log=None, minutes=1000.0, writer=None):
    distributed, log = DistributedContext(), log or Recorder()
    return CheckpointManager(
        folder, state, minutes=minutes, log=log, distributed=distributed, writer=writer
    )


class Moments:
    """A training at three moments; the first two were saved, the third is about to be."""

    def __init__(self, kind, folder):
        self._make, self._state_of = KINDS[kind]
        self.folder = folder
        training = self._make(tiny_params())
        self.states = resumable(folder, self._state_of(training))
        for step in (2, 4):
            run_steps(training, 2)
            self.states.save({"images_seen": step})
        self.saved = {path.name: path.read_bytes() for path in folder.iterdir()}
        run_steps(training, 2)

    def go_back(self):
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, content in self.saved.items():
            (self.folder / name).write_bytes(content)

    def save(self):
        self.states.save({"images_seen": 6})

    def found(self, log=None):
        """Which moment a new process would go on from."""
        info = resumable(self.folder, self._state_of(self._make(tiny_params())), log).restore()
        return info["images_seen"]


@pytest.fixture(params=KINDS)
def moments(request, tmp_path):
    return Moments(request.param, tmp_path / "run")


def test_a_kill_at_any_boundary_of_a_save_loses_at_most_that_save(moments):
    with Boundaries(lambda: None, below=moments.folder).watched() as seen:
        moments.save()
    assert seen.names.count("replace") == 3
    found = []
    for number in range(1, len(seen.names) + 1):
        moments.go_back()
        child = os.fork()
        if child == 0:
            with Boundaries(lambda: os._exit(9), number, moments.folder).watched():
                moments.save()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found.append(moments.found())
        moments.save()  # what the dead process left does not hinder the next one
        assert moments.found() == 6
    assert found == sorted(found)
    assert set(found) == {4, 6}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(damage, moments):
    moments.save()
    state = moments.folder / "state"
    content = bytearray(state.read_bytes())
    content[len(content) // 3] ^= 4
    state.write_bytes({"cut": content[:-1], "flipped": content, "empty": b""}[damage])
    log = Recorder()
    assert moments.found(log) == 4
    assert any("run/state is damaged, and deleted; going on" in line for line in log.lines)
    moments.save()
    broken = state.read_bytes()[:-1]
    state.write_bytes(broken)
    assert moments.found() == 4, "the good one has not given way to the damaged one"
    (moments.folder / "state-before").write_bytes(broken)
    with pytest.raises(DataError, match=r"run/state-before is damaged: delete it"):
        moments.found()


@pytest.fixture
def writing(monkeypatch):
    """Lets a background writer begin when the event is set; ``error`` is then raised."""
    event, error, write = threading.Event(), [], checkpoints.write_state

    def later(path, tensors):
        assert event.wait(10)
        if error:
            raise error[0]
        write(path, tensors)

    monkeypatch.setattr(checkpoints, "write_state", later)
    return event, error


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_written_in_the_background_is_that_of_its_moment(kind, tmp_path, writing):
    make, state_of = KINDS[kind]
    training, written = make(tiny_params()), []
    run_steps(training, 2)
    with StateWriter.started() as writer:
        states = resumable(tmp_path, state_of(training), writer=writer)
        states.save({"images_seen": 2}, lambda: written.append((tmp_path / "state").exists()))
        then = weights(training)
        run_steps(training, 2)
        assert not states.should_save()
        assert (written, [*tmp_path.iterdir()]) == ([], [])
        writing[0].set()
    assert written == [True]
    assert not equal(weights(training), then)
    assert resumable(tmp_path, state_of(training)).restore() == {"images_seen": 2}
    assert equal(weights(training), then)


def test_a_stop_waits_for_the_writer_and_its_error_is_raised_in_the_next_step(tmp_path, writing):
    event, error = writing
    state_of, training = KINDS["pretrain"][1], KINDS["pretrain"][0](tiny_params())
    with StateWriter.started() as writer:
        states = resumable(tmp_path, state_of(training), Stopper(0), 0.001, writer)
        assert states.should_save()
        states.save({"images_seen": 0})
        threading.Timer(0.2, event.set).start()
        with pytest.raises(Interrupted):
            states.raise_if_stopping(0)
        assert (tmp_path / "state").exists()
        error.append(OSError(errno.ENOSPC, "full"))
        states.save({"images_seen": 8})
        while not writer._pending.done():
            time.sleep(0.01)
        with pytest.raises(OSError, match="full"):
            states.should_save()
    assert resumable(tmp_path, state_of(training)).restore() == {"images_seen": 0}


@pytest.fixture
def distances(monkeypatch):
    """Proximal distances that a distillation will find, by images seen.

    They change after a kill, as on a GPU, which rounds in another way each time.
    """
    measure, found = distill._DistillJob._judge, {0: 2.0, 64: 1.0}

    def judge(self):
        measure(self)
        return found.get(self.history.images_seen, 9.0), 0.0

    monkeypatch.setattr(distill._DistillJob, "_judge", judge)
    return found


class DyingAt(Recorder):
    """Ends the process, as it were, where 64 images are measured, or before the state at 72."""

    def __init__(self, images):
        super().__init__()
        self.asked, self.images = 0, images

    def metrics(self, images, values):
        if images == self.images:
            raise EOFError

    def stop_signal(self):
        self.asked += 1
        if 8 * self.asked == self.images:
            raise EOFError


@pytest.mark.parametrize("killed_at", [64, 72])
def test_other_numbers_after_a_kill_choose_among_generators_that_are_there(
    killed_at, copied, distances
):
    """In the second case the last state is damaged, and the one before counts on other ones."""
    every_step = tiny(run={"checkpoint_minutes": 1e-9})
    with pytest.raises(EOFError):
        run(distill, every_step, copied, DyingAt(killed_at))
    if killed_at == 72:
        (state,) = copied.state("distill").glob("*/state")
        state.write_bytes(b"damaged")
    distances[64] = 3.0
    log = Recorder()
    run(distill, every_step, copied, log)
    assert "resumed after 56 images" in log.lines
    chosen = copied.artifact("distill")
    assert (chosen / "generator" / "weights.safetensors").exists()
    assert files_of(chosen / "generator") == files_of(chosen / "checkpoints" / "000000000")


def test_it_is_time_to_save_before_too_much_could_be_lost(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    states = resumable(tmp_path / "run", TrainingState({}, {}), minutes=2.0)
    answers = []
    for step in (30, 30, 30, 29):  # at 90 s, another step of 30 s is not too much
        now[0] += step
        answers.append(states.should_save())
    assert answers == [False, False, False, True]
    states.save({"images_seen": 1})
    now[0] += 100  # but one of 100 s would be
    assert states.should_save()


def nan_in(monkeypatch, stage, at, times):
    """Break the trained network's gradient in one step, in the first ``times`` attempts."""
    left = [times]
    module, training = {
        "pretrain": ("denoiser", "dsd.pretraining.trainer.TeacherTraining"),
        "distill": ("generator", "dsd.distillation.trainer.Distillation"),
    }[stage]
    advance = f"{training}._step"
    holder = getattr(sys.modules[training.rpartition(".")[0]], training.rpartition(".")[2])
    original = holder._step

    def broken(self):
        if self.step == at and left[0] > 0:
            left[0] -= 1
            weight = next(getattr(self, module).parameters())
            handle = weight.register_hook(lambda gradient: gradient * torch.nan)
            try:
                return original(self)
            finally:
                handle.remove()
        return original(self)

    monkeypatch.setattr(advance, broken)


@pytest.mark.parametrize(("stage", "minutes"), [("pretrain", 1000.0), ("distill", 1e-9)])
def test_a_fault_that_does_not_come_again_leaves_no_trace(stage, minutes, copied, monkeypatch):
    whole = files_of(copied.artifact(stage)), files_of(copied.report(stage))
    shutil.rmtree(copied.artifact(stage))
    shutil.rmtree(copied.report(stage))
    nan_in(monkeypatch, stage, at=13, times=2)
    monkeypatch.setattr("pipeline.execution.run._overlaps", lambda device: stage == "distill")
    log = Recorder()
    run(STAGES[stage], tiny(run={"checkpoint_minutes": minutes}), copied, log)
    assert (files_of(copied.artifact(stage)), files_of(copied.report(stage))) == whole
    retries = [line for line in log.lines if "from the last good state" in line]
    assert len(retries) == 2
    assert "NaN or infinite after 112 images: the " in retries[0]
    assert "retry 1 of 2" in retries[0]
    resumed = [line for line in log.lines if line.startswith("resumed after 104 images")]
    assert len(resumed) == (2 if minutes < 1 else 0)
    assert log.struck == [1, 2]


def test_the_last_failure_is_a_diagnosis_and_the_state_stays_good(copied, monkeypatch):
    stage = "pretrain"
    nan_in(monkeypatch, stage, at=13, times=99)
    often = tiny(run={"checkpoint_minutes": 1e-9, "max_nonfinite_retries": 1})
    with pytest.raises(
        NonFiniteError, match=r"after 112 images.*2 attempts ended so, at the same step.*learning"
    ):
        run(STAGES[stage], often, copied)
    monkeypatch.undo()
    whole = files_of(copied.artifact(stage))
    log = Recorder()
    run(STAGES[stage], tiny(), copied, log)  # less often: the run is the same
    assert "resumed after 104 images" in log.lines
    assert files_of(copied.artifact(stage)) == whole


class Late:
    """An answer as a GPU gives it: after two more steps, unless it is waited for."""

    late = True

    def __init__(self, value):
        self.value = value

    def read(self):
        return bool(self.value)


@pytest.mark.parametrize(
    ("stage", "at", "minutes"),
    [("pretrain", 9, 1000.0), ("distill", 14, 1e-9), ("distill", 19, 1000.0)],
)
def test_no_state_number_or_picture_is_made_of_what_was_not_looked_at(
    stage, at, minutes, copied, monkeypatch
):
    whole = files_of(copied.artifact(stage)), files_of(copied.report(stage))
    log = Recorder()
    monkeypatch.setattr("dsd.training.nonfinite._DeferredFlag", Late)
    nan_in(monkeypatch, stage, at=at, times=1)
    run(STAGES[stage], tiny(run={"checkpoint_minutes": minutes}), copied, log)
    assert (files_of(copied.artifact(stage)), files_of(copied.report(stage))) == whole
    assert any(f"after {8 * at + 8} images: the" in line for line in log.lines)
    assert all(math.isfinite(value) for _, values in log.values for value in values.values())
    resumed = f"resumed after {8 * at} images" in log.lines
    assert resumed == (minutes < 1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_that_dvc_has_not_noted_is_not_trained_again(stage, copied):
    """As after a kill between the stage's end and DVC's note of it."""
    first, again = Recorder(), Recorder()
    run(STAGES[stage], tiny(), copied, first)
    whole = files_of(copied.artifact(stage)), files_of(copied.report(stage))
    shutil.rmtree(copied.artifact(stage))
    shutil.rmtree(copied.report(stage))
    run(STAGES[stage], tiny(), copied, again)
    assert "resumed after 160 images" in again.lines
    assert again.values == first.values
    assert (files_of(copied.artifact(stage)), files_of(copied.report(stage))) == whole


def test_a_state_goes_when_dvc_has_noted_the_training(copied, tmp_path):
    states = copied.state("pretrain")
    with pytest.raises(Interrupted):
        run(pretrain, tiny(pretrain={"learning_rate": 2.0e-3}), copied, Stopper(3))
    run(pretrain, tiny(), copied)
    done, interrupted = sorted(states.iterdir(), key=lambda path: not (path / "done").exists())
    remove_finished(states, tmp_path / "another")
    remove_finished(states, copied.root, but=done.name)
    with lock_run_dir(done, DistributedContext()):
        remove_finished(states, copied.root)
    assert done.exists()
    remove_finished(states, copied.root)
    assert [path.name for path in states.iterdir()] == [interrupted.name]


def test_a_state_whose_workspace_is_gone_goes_with_any_other(tmp_path):
    states = resumable(tmp_path / "states" / "run", TrainingState({}, {}))
    states.save({"images_seen": 1})
    mark_finished(states.folder, tmp_path / "gone")
    remove_finished(tmp_path / "states", tmp_path)
    assert list((tmp_path / "states").iterdir()) == []


def test_a_kill_while_a_state_is_forgotten_leaves_none_without_its_files(tmp_path, monkeypatch):
    states = resumable(tmp_path / "run", TrainingState({}, {}))
    states.save({"images_seen": 1})
    states.save({"images_seen": 2})
    mark_finished(states.folder, tmp_path)

    def die(folder, **_):
        raise EOFError

    monkeypatch.setattr("shutil.rmtree", die)
    with pytest.raises(EOFError):
        remove_finished(tmp_path, tmp_path)
    assert states.restore() is None


CODE = '''
"""What it is."""
LIMIT = 3  # a number
"""What it means."""


def double(x):
    """Twice."""
    return 2 * x
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# a number", "# another comment", True),
        ('"""Twice."""', '"""Two times."""', True),
        ('    """Twice."""\n', "", True),
        ('"""What it means."""', "", True),
        ("double(x):", "double( x ) :", True),
        ("2 * x", "3 * x", False),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("LIMIT = 3", 'LIMIT = "3"', False),
    ],
)
def test_words_and_layout_of_the_code_make_no_other_training(
    old, new, same, tmp_path, monkeypatch
):
    def here():
        return Origin.here("pretrain", tiny(), tmp_path, {})

    monkeypatch.setattr(origin, "_PROJECT", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {pretrain: {params: [seed], deps: [dsd/model]}}")
    (tmp_path / "dsd" / "model").mkdir(parents=True)
    (tmp_path / "dsd" / "other.py").write_text("")
    (tmp_path / "dsd" / "model" / "a.py").write_text(CODE)
    before = here()
    (tmp_path / "dsd" / "other.py").write_text("x = 1")  # of no folder that the stage needs
    (tmp_path / "dsd" / "model" / "a.py").write_text(CODE.replace(old, new))
    now = here()
    assert (now.name == before.name) == same
    assert now.changes_since(before) == ("" if same else "dsd/model/a.py changed")
    (tmp_path / "dsd" / "model" / "b.py").write_text("")
    assert here().changes_since(now) == "dsd/model/b.py changed"


def test_what_changed_is_named_in_few_words():
    earlier = Origin(
        workspace="/a",
        parameters={"seed": 0, "pretrain": {"kimg": 1.0, "P_mean": -1.2}},
        inputs={"data/corrupt/train": "1"},
        code={f"dsd/{number}.py": "1" for number in range(5)},
    )
    changes = {
        "workspace": Path("/b"),
        "parameters": {"seed": 1, "pretrain": {"kimg": 1.0}},
        "inputs": {"data/corrupt/train": "2"},
        "code": {},
    }
    assert earlier.model_copy(update=changes).changes_since(earlier) == (
        "pretrain.P_mean is null and was -1.2, seed is 1 and was 0, data/corrupt/train changed, "
        "dsd/0.py changed, dsd/1.py changed and 3 more"
    )


@pytest.fixture
def stopped(copied):
    """A workspace in which both trainings were stopped half-way, with their states."""
    states = {}
    for name, stage in STAGES.items():
        with pytest.raises(Interrupted):
            run(stage, tiny(), copied, Stopper(2))
        (states[name],) = copied.state(name).glob("*/state")
    return copied, states


def told(log):
    return [line for line in log.lines if line.startswith("starts from the beginning")]


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_that_other_code_makes_begin_again_is_told_and_the_old_state_goes(
    stage, stopped, monkeypatch
):
    paths, states = stopped
    code_of = origin._code
    monkeypatch.setattr(
        origin, "_code", lambda folders: {**code_of(folders), "dsd/model/denoiser.py": "other"}
    )
    log = Recorder()
    with pytest.raises(Interrupted):
        run(STAGES[stage], tiny(), paths, Stopper(1))
    assert states[stage].exists(), "until the new run is done, there is a way back"
    shutil.rmtree(max(paths.state(stage).iterdir(), key=lambda path: path.stat().st_mtime))
    run(STAGES[stage], tiny(), paths, log)
    (line,) = told(log)
    assert "stopped after 24 of 160 images is not continued" in line
    assert "because dsd/model/denoiser.py changed." in line
    assert f"its state is {states[stage].parent}, and it is deleted when this run is done" in line
    (done,) = paths.state(stage).iterdir()
    assert (done / "done").exists()


def test_a_stopped_training_with_other_parameters_is_told_and_stays(stopped):
    stage, (paths, _) = "pretrain", stopped
    log, again = Recorder(), Recorder()
    run(STAGES[stage], tiny(**{stage: {"learning_rate": 0.002}}), paths, log)
    (line,) = told(log)
    assert f"because {stage}.learning_rate is 0.002 and was 0.0" in line
    assert line.endswith("and it stays")
    run(STAGES[stage], tiny(), paths, again)
    assert "resumed after 24 images" in again.lines
    assert told(again) == []


def test_stopped_trainings_of_others_are_neither_told_nor_deleted(stopped, monkeypatch, tmp_path):
    paths, states = stopped
    state = states["pretrain"].parent
    found = Origin.read(state)
    monkeypatch.setattr(origin, "_code", lambda _: {})
    log = Recorder()
    with exclusive(state.with_suffix(".lock"), "a training"):
        run(pretrain, tiny(), paths, log)
    assert told(log)
    assert state.exists(), "another process has it"
    shutil.rmtree(paths.root / ".dsd" / "state" / "distill")
    found.model_copy(update={"workspace": tmp_path / "another"}).write(state)
    monkeypatch.setattr(origin, "_code", lambda _: {"dsd/x.py": "1"})
    log = Recorder()
    run(pretrain, tiny(), paths, log)
    assert told(log) == []
    assert state.exists()


def test_the_same_training_elsewhere_is_refused_with_its_owner(copied):
    stage = "pretrain"

    class Rival(Recorder):
        """Starts the same training in the middle of it, as an experiment in a copy would."""

        def metrics(self, images, values):
            if images > 0:
                with pytest.raises(BusyError, match=rf"same parameters.*process {os.getpid()};"):
                    run(STAGES[stage], tiny(), copied)
                raise EOFError

    with pytest.raises(EOFError):
        run(STAGES[stage], tiny(), copied, Rival())
    run(STAGES[stage], tiny(), copied)  # its lock went with it


LONG_STEP = """
import sys, time
import torch
from pipeline.runtime.signals import StopSignal

stop = StopSignal(seconds=float(sys.argv[2]))
stop.install()
stop.graceful = True
x = torch.randn(int(sys.argv[1]), int(sys.argv[1]))
print("ready", flush=True)
torch.linalg.svdvals(x)  # one operation, in which Python hears nothing
time.sleep(0.5)  # or the signal may come when all is over
print("step done", stop.number, flush=True)
"""


@pytest.mark.parametrize(
    ("number", "size", "patience", "code"),
    [
        pytest.param(signal.SIGTERM, 8000, 0.5, 143, id="too long a step"),
        pytest.param(signal.SIGTERM, 300, 60, 0, id="a short step"),
        pytest.param(signal.SIGINT, 1500, 0.1, 0, id="Ctrl-C waits"),
    ],
)
def test_sigterm_waits_for_a_step_but_not_for_ever(number, size, patience, code):
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_STEP, str(size), str(patience)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert process.returncode == code
    assert ("goes on from the last saved state" in err) == (code == 143)
    assert ("step done" in out) == (code == 0)
