"""Whatever is killed or fails at whatever moment: nothing is lost, and the end is the same."""

import errno
import os
import random
import signal
import subprocess
import sys

import pytest
from tiny_training import KINDS, run_steps, tiny_params

from bench.reliability import kills
from pipeline.stage_io.paths import Paths
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


@pytest.mark.parametrize("number", ERRORS)
def test_a_disk_that_refuses_at_any_boundary_leaves_one_whole_state(number, moments):
    def refuse():
        raise OSError(number, os.strerror(number), str(moments.path))

    # From 2: that a folder which is there cannot be made stops nobody.
    for at in range(2, len(boundaries(moments)) + 1):
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
    page = kills.page(kills.origin("python x"), [trial], ["left behind: c"])
    assert "Written by `python x --write`" in page
    assert "**2 kills in 1 trials; 2 findings.**" in page
    assert "| corrupt | 1 | 0 | 2 | 0 | 2 | 1 | 0.5 s | 1 |" in page
    assert page.endswith("* trial 1, corrupt: differs: a\n* left behind: c\n")


FAILING_STAGE = """
import errno, os, sys
from pathlib import Path
from sandbox.faults import Boundaries
import pipeline.stages.pretrain, pipeline.tracking.tracker
from pipeline.__main__ import main

states = Path.cwd() / ".dsd" / "state"
numbers = [errno.ENOSPC, errno.EIO, errno.EROFS]
for at in (2, 4, 6, 8):
    number = numbers[at // 2 % 3]
    def refuse():
        raise OSError(number, os.strerror(number), str(states))
    child = os.fork()
    if child == 0:
        with Boundaries(refuse, at, states).watched():
            code = main(["pretrain"])
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print("CODE", os.waitstatus_to_exitcode(status), flush=True)
"""
"""Runs the stage four times; each time the disk refuses another file operation on its states."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A clone whose stages have run once."""
    made = kills.Bench(tmp_path_factory.mktemp("clone"))
    made.run_whole()
    return made


@pytest.mark.slow
def test_a_stage_whose_states_cannot_be_saved_says_so_and_goes_on_later(bench):
    bench.delete_outputs("pretrain")
    done = subprocess.run(
        [sys.executable, "-c", FAILING_STAGE],
        cwd=bench.root,
        env=bench.env,
        capture_output=True,
        text=True,
        check=True,
    )
    codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["5"] * 4
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 4
    assert "Traceback" not in done.stderr
    for message in messages:
        assert "continues where it was" in message
    assert bench.attempt("pretrain", []).findings == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "numbers"),
    [
        ("corrupt", [signal.SIGKILL]),
        ("pretrain", [signal.SIGKILL, signal.SIGTERM]),
        ("distill", [signal.SIGKILL, signal.SIGINT, signal.SIGKILL]),
        ("evaluate", [signal.SIGKILL]),
    ],
)
def test_a_killed_stage_ends_with_the_same_bytes_and_numbers(stage, numbers, bench):
    chance = random.Random(0)
    plans = [
        kills.Plan(number, True, chance.random() / 2, number == signal.SIGKILL)
        for number in numbers
    ]
    trial = bench.attempt(stage, plans)
    assert trial.findings == []
    assert [kill.code for kill in trial.kills].count(0) < len(plans), "all kills came too late"
    assert bench.unfinished_runs() == []
