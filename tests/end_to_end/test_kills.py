"""Whatever is killed or fails at whatever moment: nothing is lost, and the end is the same."""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module

import pytest
from tiny_training import KINDS, run_steps, tiny_params

from bench.common import origin
from bench.reliability import kills
from pipeline.__main__ import main
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES
from pipeline.tracking import tracker as tracking
from pipeline.tracking.session import Record, open_session
from sandbox.faults import Boundaries

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


class Moments:
    """A training's state at two moments, the first of them saved."""

    def __init__(self, kind, folder):
        make, state_of = KINDS[kind]
        self._new = lambda: state_of(make(tiny_params()))
        self.path = folder / "state"
        training = make(tiny_params())
        self.state = state_of(training)
        self.contents = []
        for step in (3, 6):
            run_steps(training, 3)
            self.info = {"step": step, "history": [0.1] * step}
            self.state.save(self.path, self.info)
            self.contents.append(self.path.read_bytes())
        self.go_back()

    def go_back(self):
        """Only the first moment is saved."""
        self.path.write_bytes(self.contents[0])

    def save(self):
        """Save the second moment."""
        self.state.save(self.path, self.info)

    def found(self):
        """Which of the moments a new process would find, which reads all of it."""
        state = self._new()
        info = state.load(self.path)
        moment = self.contents.index(self.path.read_bytes())
        assert info["step"] == (3, 6)[moment]
        state.save(self.path, info)
        assert self.path.read_bytes() == self.contents[moment]
        return moment


@pytest.fixture(params=KINDS)
def moments(request, tmp_path):
    return Moments(request.param, tmp_path)


def boundaries(moments):
    """What a save does with files, in order."""
    with Boundaries(lambda: None, below=moments.path.parent).watched() as seen:
        moments.save()
    return seen.names


def test_a_state_is_on_the_disk_before_it_has_its_name(moments):
    names = [name for name in boundaries(moments) if name in ("write", "fsync", "replace")]
    assert names == ["write"] * 4 + ["fsync", "replace", "fsync"]


def test_a_kill_at_any_boundary_of_a_save_leaves_one_whole_state(moments):
    found = []
    for number in range(1, len(boundaries(moments)) + 1):
        moments.go_back()
        child = os.fork()
        if child == 0:
            with Boundaries(lambda: os._exit(9), number, moments.path.parent).watched():
                moments.save()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 9
        found.append(moments.found())
        moments.save()  # what the dead process left does not hinder the next one
        assert moments.found() == 1
    assert found == sorted(found)
    assert {0, 1} == set(found)


def test_a_disk_that_refuses_at_any_boundary_leaves_one_whole_state(moments):
    # From 2: that a folder which is there cannot be made stops nobody.
    for at in range(2, len(boundaries(moments)) + 1):
        number = ERRORS[at % 3]

        def refuse(number=number):
            raise OSError(number, os.strerror(number), str(moments.path))

        moments.go_back()
        with (
            pytest.raises(OSError, match="state") as refused,
            Boundaries(refuse, at, moments.path.parent).watched(),
        ):
            moments.save()
        assert refused.value.errno == number
        moments.found()


def test_a_kill_before_a_run_that_was_sent_is_forgotten_leaves_nothing_for_ever(tmp_path):
    paths = Paths(tmp_path)
    record = Record("corrupt", "name", "dsd", "sqlite:///none.db", {}, {}, started_ms=0)
    session = open_session(paths.tracking_state("corrupt"), record)
    session.record.completed_steps.append("end")
    session.end("FINISHED", 1)
    session.release()
    assert tracking.sync(paths) == (0, 0)
    assert list(paths.tracking_state("corrupt").iterdir()) == []


def test_the_page_of_the_kills_says_what_hit_and_what_was_found():
    plan = kills.Plan(signal.SIGTERM, at_work=True, fraction=0.5, as_dvc=False)
    hit, late = kills.Kill(plan, 2.0, 0.5, 143), kills.Kill(plan, 9.0, 0.0, 0)
    trial = kills.Trial("corrupt", [hit, hit, late], ["differs: a\nb"])
    page = kills.page({"command": "python x", **origin()}, [trial], ["left behind: c"])
    assert "Written by `python x --write`" in page
    assert "**2 kills in 1 trials; 2 findings.**" in page
    assert "| corrupt | 1 | 0 | 2 | 0 | 2 | 1 | 0.5 s | 1 |" in page
    assert page.endswith("* trial 1, corrupt: differs: a\n* left behind: c\n")


class Forked:
    """A function in a forked process of its own session, with the methods of ``Popen``."""

    def __init__(self, function, folder, env):
        self._log, self.returncode = tempfile.TemporaryFile("w+"), None  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            self._become(function, folder, env)

    def _become(self, function, folder, env):
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(env)
            for number in (1, 2):
                os.dup2(self._log.fileno(), number)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
            code = function()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=300.0):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a stage", timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self):
        self.wait()
        self._log.seek(0)
        return self._log.read(), ""

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


class Bench(kills.Bench):
    """Its commands are forked from this process, which has imported what they need."""

    def start(self, *command):
        return Forked(lambda: main([*command[3:]]), self.root, self.env)

    def run(self, *command, code=0):
        process = self.start(*command)
        printed, _ = process.communicate()
        assert process.returncode == code, printed


IMPORTED = (
    "pipeline.reports.report",
    "pipeline.checks.check",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.db.utils",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A clone whose stages have run once."""
    for module in (*(f"pipeline.stages.{stage}" for stage in STAGES), *IMPORTED):
        import_module(module)
    shorter = {
        "pretrain.kimg": 2.56,
        "pretrain.sample_every_kimg": 1.28,
        "distill.kimg": 1.28,
        "distill.selection.every_kimg": 0.32,
    }
    made = Bench(tmp_path_factory.mktemp("clone"), {**kills.PARAMS, **shorter})
    made.run_whole()
    return made


@pytest.mark.slow
def test_a_stage_whose_states_cannot_be_saved_says_so_and_goes_on_later(bench):
    bench.delete_outputs("pretrain")
    states = bench.root / ".dsd" / "state"
    for at in (3, 5, 7, 9):  # after the folder of the leases
        number = ERRORS[at // 2 % 3]

        def refuse(number=number):
            raise OSError(number, os.strerror(number), str(states))

        def stage(at=at, refuse=refuse):
            with Boundaries(refuse, at, states).watched():
                return main(["pretrain"])

        process = Forked(stage, bench.root, bench.env)
        printed, _ = process.communicate()
        assert process.returncode == 5, printed
        (message,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert "continues where it was" in message
        assert "Traceback" not in printed
    assert bench.attempt("pretrain", []).findings == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "numbers"),
    [
        ("corrupt", [signal.SIGKILL]),
        ("pretrain", [signal.SIGKILL, signal.SIGTERM]),
        ("distill", [signal.SIGKILL, signal.SIGINT]),
        ("evaluate", [signal.SIGKILL]),
    ],
)
def test_a_killed_stage_ends_with_the_same_bytes_and_numbers(stage, numbers, bench):
    chance = random.Random(0)
    fractions = [chance.random() / 2 for _ in numbers]
    # A stage can take much less than its uninterrupted run did, beside a process that has ended.
    for scale in (1, 0.5, 0.1, 0):
        plans = [
            kills.Plan(number, True, scale * fraction, number == signal.SIGKILL)
            for number, fraction in zip(numbers, fractions, strict=True)
        ]
        trial = bench.attempt(stage, plans)
        assert trial.findings == []
        if any(kill.code for kill in trial.kills):
            return
    pytest.fail("all kills came too late")


@pytest.mark.slow
def test_no_run_is_left_unfinished_in_mlflow(bench):
    assert bench.unfinished_runs() == []
