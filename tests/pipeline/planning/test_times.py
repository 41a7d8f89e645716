"""Times of stages: what counts for which parameters, and what people read."""

import pytest
from stage_helpers import params_with

from pipeline.planning.forecast import show_forecast
from pipeline.planning.times import Expected, announcement, expected, remember
from pipeline.stage_io.paths import Paths
from pipeline.stages import STAGES

SECONDS = dict(zip(STAGES, (20.0, 4.0, 300.0, 200.0, 100.0), strict=True))


@pytest.fixture
def paths(tmp_path):
    """A workspace where each stage ran once with the committed parameters."""
    for stage, seconds in SECONDS.items():
        remember(stage, params_with(), Paths(tmp_path), seconds, ran=True)
    return Paths(tmp_path)


def test_what_a_stage_took_is_expected_again(paths):
    known = expected(params_with(), paths)
    assert {stage: round(time.seconds, 6) for stage, time in known.items()} == SECONDS
    assert all(time.ran for time in known.values())


@pytest.mark.parametrize(
    ("changes", "stage", "seconds"),
    [
        ({"seed": 7, "corrupt": {"sigma": 0.2}}, "pretrain", 300.0),
        ({"pretrain": {"kimg": 512.0}}, "pretrain", 600.0),
        ({"evaluate": {"num_samples": 1000}}, "evaluate", 25.0),
        ({"pretrain": {"batch_size": 64}}, "distill", 200.0),
        ({"pretrain": {"batch_size": 64}}, "pretrain", None),
        ({"data": {"resolution": 32}}, "prepare", None),
        ({"distill": {"divergence": "dmd"}}, "distill", None),
    ],
)
def test_a_time_counts_for_work_of_the_same_kind_in_proportion(paths, changes, stage, seconds):
    found = expected(params_with(**changes), paths).get(stage)
    assert (None if found is None else found.seconds) == (seconds and pytest.approx(seconds))


def test_an_estimate_never_replaces_a_run_and_a_run_replaces_an_estimate(paths):
    params, other = params_with(), params_with(network={"model_channels": 64})
    remember("pretrain", params, paths, 1.0, ran=False)
    assert expected(params, paths)["pretrain"].ran
    remember("pretrain", other, paths, 50.0, ran=False)
    assert expected(other, paths)["pretrain"] == Expected(pytest.approx(50.0), ran=False)
    remember("pretrain", other, paths, 60.0, ran=True)
    assert expected(other, paths)["pretrain"] == Expected(pytest.approx(60.0), ran=True)


def test_a_stage_says_which_it_is_and_how_long_it_and_all_after_it_take(paths):
    line, later = announcement("pretrain", params_with(), paths)
    assert line == (
        "pretrain, stage 3 of 5: fit the teacher to noisy images; about 5 min, 10 min with the 2 "
        "after it"
    )
    assert later == pytest.approx(300.0)
    assert announcement("evaluate", params_with(), paths)[0].endswith("; about 1 min 40 s")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"pretrain": {"x": 1}}'])
def test_without_usable_times_a_stage_names_the_command_that_estimates_them(tmp_path, text):
    paths = Paths(tmp_path)
    if text is not None:
        paths.times.parent.mkdir()
        paths.times.write_text(text)
    line, later = announcement("distill", params_with(), paths)
    assert line.endswith("generator (`python -m pipeline forecast` estimates the time)")
    assert later is None
    remember("distill", params_with(), paths, 5.0, ran=True)
    assert expected(params_with(), paths)["distill"].ran


def test_the_forecast_lists_all_stages_and_measures_nothing_that_is_known(paths, capsys):
    show_forecast(params_with(), paths)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "5 stages, about 10 min in all; those up to date are skipped:"
    assert [line.split()[1] for line in said[1:6]] == [*STAGES]
    assert "5 min  fit the teacher" in said[3]


def test_the_forecast_estimates_what_never_ran_and_says_which(paths, capsys, monkeypatch):
    from pipeline.planning import plan

    costs = [plan.StageCost(stage, 60.0, 0, 0) for stage in STAGES]
    monkeypatch.setattr(plan, "measure", lambda params, paths: None)
    monkeypatch.setattr(plan, "costs", lambda params, rates: costs)
    params = params_with(distill={"divergence": "dmd"})
    show_forecast(params, paths)
    said = capsys.readouterr().out
    assert "Estimated from a few steps, off by a third or more: distill.\n" in said
    assert expected(params, paths)["distill"].seconds == pytest.approx(60.0)
    assert expected(params, paths)["pretrain"].seconds == pytest.approx(300.0)
