"""Several runs on one page: what may be compared, what is averaged, and what is shown."""

import csv
import json
import re
import shutil
import statistics
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from dsd.utils.errors import DataError, ParamsError
from pipeline.__main__ import main
from pipeline.params.reader import load_params
from pipeline.reports.compare import compare, folder_run
from pipeline.reports.comparison import differing, groups_of, lines_of
from pipeline.reports.summary import read_summary
from pipeline.stage_io.paths import Paths
from pipeline.tracking import tracker as tracking
from pipeline.tracking.evaluations import Evaluation
from sandbox import ROOT
from sandbox.pages import COMPARISON_SCRIPT, after, check, look, measured_width, needs_browser
from sandbox.tiny_params import set_params

MAIN, OTHER = "fashion-classifier", "efficientnet-lite0"
TEACHERS = {"teacher_full": 6.0, "teacher_truncated": 2.0, "teacher_truncated_exact": 1.9}


def summary_of(value, *, sigma, seed, features=(MAIN, OTHER), **protocol):
    """A summary in which every number follows from ``value``, the generator's distance."""

    def row(distance):
        both = {"frechet": distance, "proximal_frechet": distance / 10}
        return {**both, "by_features": dict.fromkeys(features, both)}

    extractors = {name: f"{name}, version 1" for name in features}
    return {
        "generator": row(value),
        **{name: row(distance + seed) for name, distance in TEACHERS.items()},
        "noisy_data": {"by_features": {name: {"frechet": 40 * sigma} for name in features}},
        "protocol": {
            "features": features[0], "extractors": extractors, "num_samples": 4000,
            "num_clean": 20000, "operator": {"kind": "identity"}, "seed": seed, "sigma": sigma,
            "sigma_hat": sigma, **protocol,
        },
    }  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Makes the folder of a run."""

    def made(name, value, *, sigma=0.5, seed=0, picture=False, params=(), **protocol):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(ROOT / "params.yaml", folder)
        set_params(folder, {"corrupt.sigma": sigma, "seed": seed, **dict(params)})
        summary = summary_of(value, sigma=sigma, seed=seed, **protocol)
        (folder / "summary.json").write_text(json.dumps(summary))
        if picture:
            target = folder / "evaluate" / "samples" / "generator.png"
            target.parent.mkdir(parents=True)
            Image.effect_noise((400, 100), 60).save(target)
        return folder

    return made


@pytest.fixture
def sweep(make):
    """Two divergences at two noise levels, three seeds each at the lower one."""
    values = {("sid", 0.2): (1.0, 1.1, 1.5), ("dmd", 0.2): (1.2, 1.3, 1.4),
              ("sid", 0.5): (2.0,), ("dmd", 0.5): (2.5,)}  # fmt: skip
    return [
        make(
            f"{divergence}-{sigma}-{seed}",
            value,
            sigma=sigma,
            seed=seed,
            picture=seed == 0,
            params={"distill.divergence": divergence, "run.eval_batch_size": 100 + seed},
            noisy_sha256=f"of {sigma} and {seed}",
        )
        for (divergence, sigma), found in values.items()
        for seed, value in enumerate(found)
    ]


def page_of(root):
    return check(Paths(root).comparison_page, COMPARISON_SCRIPT)


def points(lines, label):
    (line,) = (line for line in lines if line.label == label)
    return {p.sigma: (p.mean, p.spread, p.runs) for p in line.points}


def test_a_line_is_the_mean_over_seeds_of_what_is_equal_otherwise(sweep):
    lines = lines_of([folder_run(folder) for folder in sweep], MAIN, "frechet")
    assert [line.label for line in lines] == [
        "noisy data", "teacher, Full", "teacher, Truncated", "teacher, Truncated at sigma",
        "one-step generator (dmd)", "one-step generator (sid)",
    ]  # fmt: skip
    sid = points(lines, "one-step generator (sid)")
    assert sid[0.2] == (pytest.approx(1.2), pytest.approx(statistics.stdev((1.0, 1.1, 1.5))), 3)
    assert sid[0.5] == (2.0, None, 1)
    # Six runs share three teachers: each counts once.
    assert points(lines, "teacher, Full")[0.2] == (7.0, 1.0, 3)
    assert points(lines, "noisy data") == {0.2: (8.0, 0.0, 3), 0.5: (20.0, None, 1)}
    proximal = lines_of([folder_run(folder) for folder in sweep], OTHER, "proximal_frechet")
    assert points(proximal, "one-step generator (dmd)")[0.5][0] == 0.25
    assert "noisy data" not in {line.label for line in proximal}


def test_only_what_matters_distinguishes_runs(sweep, make):
    runs = [folder_run(folder) for folder in sweep]
    assert differing(runs) == ["seed", "corrupt.sigma", "distill.divergence"]
    longer = make("longer", 1.0, params={"pretrain.kimg": 512.0, "distill.alpha": 1.0})
    lines = lines_of([*runs, folder_run(longer)], MAIN, "frechet")
    labels = {line.label for line in lines}
    assert "noisy data" in labels
    assert {"teacher, Full (kimg 256)", "teacher, Full (kimg 512)"} <= labels
    assert "one-step generator (kimg 512, sid, alpha 1)" in labels


def test_a_level_that_was_estimated_is_where_it_was_found(make):
    run = folder_run(make("auto", 1.0, params={"corrupt.sigma": "auto"}, sigma_hat=0.31))
    assert [p.sigma for p in lines_of([run], MAIN, "frechet")[0].points] == [0.31]


def test_runs_that_were_measured_otherwise_are_named_and_left_out(make, tmp_path):
    few = [str(make(name, 1.0, seed=seed, num_samples=64)) for seed, name in enumerate("ab", 5)]
    many = [str(make(name, 2.0, seed=seed)) for seed, name in enumerate("cde")]
    printed = compare([*many, *few], Paths(tmp_path))
    assert printed[0] == "3 runs"
    choice = re.fullmatch(
        "2 runs measured otherwise: num_samples 64 and not 4000; "
        r"`python -m pipeline compare (protocol=\w{6})` shows them",
        printed[1],
    )[1]
    text = page_of(tmp_path).text
    assert printed[1] in text
    assert [name in text for name in (*many, *few)] == [True] * 3 + [False] * 2
    assert compare([*many, *few, choice], Paths(tmp_path))[0] == "2 runs"
    assert few[0] in page_of(tmp_path).text
    with pytest.raises(DataError, match=f"protocol=x: no run was measured so. Choose.*{choice}"):
        compare([*many, *few, "protocol=x"], Paths(tmp_path))


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"operator": {"kind": "mask"}}, "operator.kind mask and not identity"),
        ({"num_clean": None}, "num_clean None and not 20000"),
        ({"new_field": 3}, "new_field 3 and not None"),
        ({"extractors": {MAIN: "2", OTHER: "2"}}, f"{MAIN} 2 and not {MAIN}, version 1"),
    ],
)
def test_any_field_of_the_protocol_is_looked_at(make, protocol, words):
    runs = [folder_run(make("a", 1.0)), folder_run(make("b", 1.0, **protocol))]
    newest, other = groups_of(runs)
    assert [run.summary for run in newest.runs] == [runs[1].summary]  # of groups of one size
    assert other.difference(newest) == words


def test_runs_compare_in_the_features_that_all_have(make, tmp_path):
    a, b = make("a", 1.0), make("b", 2.0, features=(OTHER,), seed=1)
    compare([str(a), str(b)], Paths(tmp_path))
    page = page_of(tmp_path)
    assert f"In {OTHER} features" in page.text
    assert MAIN not in page.text.replace("features fashion-classifier", "").partition("How all")[0]
    c = make("c", 2.0, features=("inception-edm",), seed=2)
    assert "1 run measured otherwise: no feature space in common" in\
        compare([str(c), str(a), str(b)], Paths(tmp_path))[1]  # fmt: skip


def test_the_page_and_the_table_show_every_run(sweep, tmp_path):
    paths = Paths(tmp_path)
    lines = compare([str(folder) for folder in sweep], paths)
    assert lines[0] == "8 runs"
    page = page_of(paths.root)
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 4
    assert "seeds 0, 1, 2; 4000 images each" in page.text
    with paths.comparison_page.with_suffix(".csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    for row in rows:
        assert row["run"] in page.text
        divergence, sigma, seed = Path(row["run"]).name.split("-")
        assert (row["distill.divergence"], row["corrupt.sigma"]) == (divergence, sigma)
        full = float(row[f"Frechet to clean ({MAIN}): teacher, Full"])
        assert full == 6.0 + int(seed)
        assert float(row[f"Proximal Frechet ({OTHER}): teacher, Full"]) == full / 10
    before = paths.comparison_page.read_bytes()
    compare([str(folder) for folder in sweep], paths)
    assert paths.comparison_page.read_bytes() == before


def test_repetitions_count_once_and_the_last_one_counts(make, tmp_path):
    old, new = make("old", 1.0), make("new", 2.0)
    line, *_ = compare([str(old), str(new)], Paths(tmp_path))
    assert line == "1 run; 1 older with equal parameters left out"
    text = page_of(tmp_path).text
    assert str(new) in text
    assert str(old) not in text


def test_names_on_the_page_do_nothing(make, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    a = make(hostile, 1.0, picture=True)
    b = make("b", 1.0, params={"data.path": "<script>"})
    compare([str(a), str(b)], Paths(tmp_path))
    page = page_of(tmp_path)
    assert hostile in page.text
    assert "<script>" in page.text


def test_folders_without_results_or_parameters_are_refused(make, tmp_path):
    a, b = make("a", 1.0), make("b", 1.0)
    (a / "summary.json").unlink()
    (b / "params.yaml").unlink()
    with pytest.raises(DataError, match=r"a/summary\.json does not exist yet"):
        folder_run(a)
    with pytest.raises(DataError, match=r"b has a summary but no params\.yaml.*put"):
        folder_run(b)


ODD = [None, True, -1e308, float("nan"), 10**400, "1", [[]], {"a": 1}]


def with_each_odd_value(document):
    """Copies of a document, each with another part replaced or missing."""
    for key in document:
        yield {name: value for name, value in document.items() if name != key}
        for odd in ODD:
            yield {**document, key: odd}
        if isinstance(document[key], dict):
            yield from ({**document, key: inner} for inner in with_each_odd_value(document[key]))


def test_a_summary_by_a_stranger_is_refused_or_compared(make, tmp_path):
    good, odd = folder_run(make("good", 1.0)), make("odd", 2.0, features=(MAIN,))
    paths, messages, compared = Paths(tmp_path / "home"), list[str](), 0
    for document in with_each_odd_value(json.loads((odd / "summary.json").read_text())):
        (odd / "summary.json").write_text(json.dumps(document))
        try:
            summary = read_summary(odd / "summary.json", "odd")
            (runs, *_) = groups_of([good, replace(good, name="odd", summary=summary)])
        except DataError as error:
            messages.append(str(error))
            continue
        assert lines_of(runs.runs, MAIN, "frechet")
        compare([str(odd)], paths) if compared % 40 == 0 else differing(runs.runs)
        compared += 1
    assert all("odd" in message and message.isprintable() for message in messages)
    assert min(len(messages), compared) > 40


def test_parameters_without_seed_or_level_are_refused(make):
    for key in ("seed", "sigma"):
        folder = make(f"without {key}", 1.0)
        lines = (folder / "params.yaml").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.strip().startswith(f"{key}:")]
        (folder / "params.yaml").write_text("".join(kept))
        with pytest.raises(DataError, match=rf"params\.yaml has no (corrupt\.)?{key}; put"):
            folder_run(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A workspace with evaluations in MLflow: one was repeated, another did not finish."""
    paths = Paths(tmp_path_factory.mktemp("store"))
    shutil.copy(ROOT / "params.yaml", paths.root)
    for seed, value in ((0, 1.0), (1, 8.0), (1, 1.5), (2, 9.0)):
        set_params(paths.root, {"seed": seed})
        samples = paths.report("evaluate") / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20), 99).save(samples / "generator.png")
        summary = summary_of(value, sigma=0.5, seed=seed)
        paths.summary.write_text(json.dumps(summary))
        track(paths, RuntimeError() if seed == 2 else None)
    return paths


def track(paths, error=None):
    with suppress(RuntimeError), tracking.run("evaluate", load_params(paths.root), paths):
        if error is not None:
            raise error


def last_run(paths):
    return json.loads((paths.report("evaluate") / "run.json").read_text())["run_id"]


def test_all_finished_evaluations_in_mlflow_are_the_default(store):
    assert compare([], store)[0] == "2 runs; 1 older with equal parameters left out"
    page = page_of(store.root)
    assert page.tags.count("img") == 1
    client = MlflowClient(f"sqlite:///{store.tracking_store}")
    experiment = client.get_experiment_by_name("dsd").experiment_id
    runs = client.search_runs(
        [experiment], "tags.`dvc.stage` = 'evaluate'", order_by=["attributes.start_time ASC"]
    )
    assert [run.info.status for run in runs] == ["FINISHED"] * 3 + ["FAILED"]
    shown = [run.info.run_id[:8] in page.text for run in runs]
    assert shown == [True, False, True, False]
    assert "1.50" in page.text
    assert "8.00" not in page.text


def test_a_run_is_named_by_the_beginning_of_its_id(store):
    assert compare([last_run(store)[:6]], store)[0] == "1 run"
    text = page_of(store.root).text
    assert last_run(store)[:8] in text
    assert "1.50" in text


def test_mlflow_and_folders_go_together(store, make):
    a, b = str(make("a", 1.2, seed=7)), str(make("b", 1.2, seed=1))
    assert compare([a], store)[0] == "1 run"
    run_id = last_run(store)  # of those that finished; its seed is 1
    assert compare([a, run_id], store)[0] == "2 runs"
    # The same parameters, be they from YAML or from MLflow's text.
    assert compare([a, b, run_id], store)[0].startswith("2 runs; 1 older")


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["seed=1"], {1}), (["source=data/embedded/fashion-mnist.parquet", "seed=0.0"], {0}),
        (["sigma 0.5"], {0, 1}), (["SID, seed 1"], {1}), (["last=1"], {1}), (["last=9"], {0, 1}),
        (["sigma=0.5", "last=1"], {1}),
    ],
)  # fmt: skip
def test_runs_are_chosen_by_name_tag_parameter_and_age(store, words, seeds):
    compare(words, store)
    with store.comparison_page.with_suffix(".csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    values = {float(row[f"Frechet to clean ({MAIN}): one-step generator"]) for row in rows}
    assert values == {{0: 1.0, 1: 1.5}[seed] for seed in seeds}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' is no folder, and no finished evaluation in MLflow is called so"),
        (["seed=7"], "seed=7: no such run among 'sigma 0.5, sid, seed 1'"),
        (["last=0"], "last=0: not a number of runs. Write for example last=5"),
        (["last=1", "last=2"], "last=2: last is given twice"),
        (["seed=1", "seed=2"], "seed=2: seed is given twice"),
    ],
)
def test_a_choice_of_nothing_is_refused(store, words, message):
    with pytest.raises((DataError, ParamsError), match=message):
        compare(words, store)


def test_a_run_of_an_older_version_does_not_end_the_comparison(store, monkeypatch):
    """Its summary has other parts; a folder that is named must be readable."""
    fetch = Evaluation.fetch

    def first_is_old(self, folder):
        files = fetch(self, folder)
        if self.params["seed"] == "0":
            files[0].write_text('{"fid": 3.0}')
        return files

    monkeypatch.setattr(Evaluation, "fetch", first_is_old)
    assert compare([], store)[0].endswith("1 of another version left out")


def test_without_any_evaluation_nothing_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare"]) == 3
    assert "MLflow has no finished evaluation yet; run `dvc repro`" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_command_takes_names_and_one_protocol(make, tmp_path, monkeypatch, capsys):
    make("a", 1.0)
    make("b", 1.0, seed=1)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a", "b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 runs", f"Best by Frechet to clean in {MAIN} features: sigma 0.5, seed 0 (1.00)",
        "Page:   reports/comparison.html", "Table:  reports/comparison.csv",
    ]  # fmt: skip
    assert main(["compare", "a", "protocol=x", "protocol=y"]) == 2
    assert "protocol=y: protocol is given twice" in capsys.readouterr().err
    assert main(["show", "a"]) == 2
    assert "show takes no name, but 'a' was given" in capsys.readouterr().err
    assert main(["preset", "a", "b"]) == 2


def test_the_best_run_stands_first_and_is_named_at_each_level(sweep, tmp_path):
    printed = compare([str(folder) for folder in sweep], Paths(tmp_path))
    best = "sigma 0.2, seed 0, sid (1.00); sigma 0.5, seed 0, sid (2.00)"
    assert printed[1] == f"Best by Frechet to clean in {MAIN} features: {best}"
    page = page_of(tmp_path)
    assert best in page.text
    first = page.text.index("sigma 0.2, seed 0, sid", page.text.index("noisy data Full"))
    assert first < page.text.index("sigma 0.2, seed 1, sid")
    assert "one-step generator (dmd), sigma 0.2: 1.3 ± 0.1 over 3 seeds" in page.text


SORT = """
const table = document.querySelector("table");
const heads = [...table.querySelectorAll("th[data-column]")];
heads.find((head) => head.textContent === "run").click();
const ascending = table.tBodies[0].rows[0].cells[0].dataset.value;
heads.find((head) => head.textContent === "generator").click();
heads.find((head) => head.textContent === "generator").click();
const key = document.querySelector('[id$="-key-0"]');
key.dispatchEvent(new Event("click"));
const line = document.querySelector('[id*="-line-0-"]').style.display;
document.title = [ascending, table.tBodies[0].rows[0].cells[0].dataset.value, line].join("|");
"""


@needs_browser
def test_a_click_sorts_the_table_and_hides_a_line(sweep, tmp_path):
    compare([str(folder) for folder in sweep], Paths(tmp_path))
    dom = after(Paths(tmp_path).comparison_page, tmp_path, SORT)
    assert "<title>sigma 0.2, seed 0, dmd|sigma 0.5, seed 0, dmd|none</title>" in dom


@needs_browser
def test_a_browser_shows_it_on_a_desk_and_on_a_phone(sweep, tmp_path):
    paths = Paths(tmp_path)
    compare([str(folder) for folder in sweep], paths)
    for width in (1100, 500):
        seen = look(paths.comparison_page, tmp_path, width=width)
        assert seen.shape[1] == width
        assert all((band < 128).any() for band in np.array_split(seen, 7))
    for width in (700, 500):
        content, window = measured_width(paths.comparison_page, tmp_path, width=width)
        assert content <= window
