"""The report of a run: everything is on it, it is one file, and nothing on it is trusted."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from stage_helpers import Recorder, params_with, png, random_images, write_parquet

from dsd.storage.image_store import ImageStore
from dsd.utils.errors import DataError
from dsd.utils.images import to_uint8
from pipeline.execution.run import run_stage
from pipeline.reports.choice import draw_choice
from pipeline.reports.figures import NUM_TIMES, draw_agreement, draw_curve, draw_levels
from pipeline.reports.metric_table import Cell, make_table
from pipeline.reports.page import as_number, embed
from pipeline.reports.report import write_report
from pipeline.reports.verdict import problems
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import read_csv, write_csv
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain
from pipeline.stages.evaluation_pictures import NUM_SHOWN
from sandbox.pages import check, look, measured_width, needs_browser

SECTIONS = ("result", "images", "training", "choice", "noise", "protocol", "parameters")
ERROR = "_standard_error"
HOSTILE = "<script>alert('x')</script>\" onload=\"&amp;<b>"


def small(**data):
    schedule = {"batch_size": 8, "kimg": 0.16, "lr_warmup_kimg": 0.0}
    selection = {
        "features": "fashion-classifier",
        "every_kimg": 0.064,
        "num_samples": 70,
        "save_top_k": 1,
    }
    return params_with(
        data={"path": "images.parquet", "pad": 0, "resolution": 8, **data},
        corrupt={"num_heldout": 70, "workers": 1},
        network={"model_channels": 8, "channel_mult": [1], "attention_resolutions": []},
        pretrain={**schedule, "sample_every_kimg": 0.08},
        distill={**schedule, "selection": {**selection, "save_top_k": 1}},
        evaluate={"features": ["fashion-classifier"], "num_samples": 70},
        compute={"device": "cpu", "precision": "float32"},
        run={"checkpoint_minutes": 1000.0},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which every stage has run once."""
    paths = Paths(tmp_path_factory.mktemp("finished"))
    encoded = [png(image) for image in random_images(150, 8, 8)]
    write_parquet(paths.root / "images.parquet", encoded)
    for stage in (prepare, corrupt, pretrain, distill, evaluate):
        paths.report(stage.__name__.split(".")[-1]).mkdir(parents=True, exist_ok=True)
        run_stage(stage, small(), paths, Recorder())
    return paths


@pytest.fixture
def workspace(finished, tmp_path):
    """A copy of it, to change."""
    shutil.copytree(finished.root / "reports", tmp_path / "copy" / "reports")
    return Paths(tmp_path / "copy")


def page_of(paths, params=None):
    write_report(params or small(), paths, seconds=12.34)
    return check(paths.report_page)


def edit(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_every_section_figure_picture_and_number_is_there(workspace):
    (workspace.report("prepare") / "run.json").write_text('{"run_id": "c0ffee", "seconds": 3.5}')
    page = page_of(workspace)
    assert {*SECTIONS, "provenance"} <= set(page.ids)
    assert {address for address in page.addresses if address.startswith("#")} >= {
        f"#{section}" for section in SECTIONS
    }
    # Loss, loss by level, gap, gap by level; choice, agreement.
    assert page.tags.count("svg") == 6
    # Data and models, more of the generator, progress, nearest neighbours, noisy data.
    assert page.tags.count("img") == 5
    summary = json.loads(workspace.summary.read_text())
    for model in (*evaluate.MODELS, "noisy_data"):
        found = summary[model]["by_features"]["fashion-classifier"]
        assert as_number(found["frechet"], found["frechet_standard_error"]) in page.text
    selection = summary["selection"]
    assert f"correlation of what chose and Frechet to clean is {selection['spearman']:.2f}, "\
        f"over the later half {selection['spearman_later_half']:.2f}." in page.text  # fmt: skip
    again, first = (
        one["heldout_proximal_frechet"] for one in (selection["again"], selection["chosen"])
    )
    assert f"it changes by {100 * (again / first - 1):+.0f} %" in page.text
    for word in ("one-step generator", "teacher, Full", "sigma_init 2.5", "c0ffee", "3.50"):
        assert word in page.text
    assert "12.3" in page.text
    seen = read_csv(workspace.report("distill") / "trajectory.csv")
    values = [float(row["proximal_frechet"]) for row in seen]
    errors = [float(row["proximal_frechet_standard_error"]) for row in seen]
    limit = min(values) + errors[values.index(min(values))]
    chosen = [row for row, value in zip(seen, values, strict=True) if value <= limit][-1]
    assert f"is the generator: that after {chosen['images']} images" in page.text
    assert json.loads((workspace.report("corrupt") / "noise.json").read_text())["problem"]\
        in page.text  # fmt: skip
    assert workspace.report_page.stat().st_size < 3e6


def test_two_reports_of_one_run_are_the_same_bytes(workspace):
    page_of(workspace)
    first = workspace.report_page.read_bytes()
    page_of(workspace)
    assert workspace.report_page.read_bytes() == first


def test_hostile_names_are_shown_and_do_nothing(workspace):
    def poison(summary):
        summary["protocol"]["pixels"] = HOSTILE
        summary["protocol"][HOSTILE] = 1
        models = (summary[name] for name in evaluate.MODELS)
        for model in models:
            model["by_features"] = {HOSTILE: {HOSTILE: 1.0, "frechet": 2.0}}
        summary["noisy_data"]["by_features"] = {}
        summary["protocol"]["extractors"] = {HOSTILE: HOSTILE}

    edit(workspace.summary, poison)
    page = page_of(workspace, small(path=HOSTILE))
    assert page.text.count(HOSTILE) >= 5
    assert "onload" not in re.sub(r'"[^"]*"', "", "".join(re.findall(r"<[^>]*>", page.source)))


def test_what_else_was_measured_is_shown_with_how_sure_it_is(workspace):
    def add(summary):
        found = summary["generator"]["by_features"]["fashion-classifier"]
        found |= {"frechet": 4.0, "frechet_low": 3.5, "frechet_high": 4.5, "notes": ["few images"]}
        found |= {"kid": 0.25, "kid_standard_error": 0.125, "new_measure": 7.5, "flag": True}

    edit(workspace.summary, add)
    table = make_table(json.loads(workspace.summary.read_text()), "fashion-classifier")
    rows = {row.label: dict(zip(table.titles, row.cells, strict=True)) for row in table.rows}
    generator, teacher = rows["one-step generator"], rows["teacher, Full"]
    assert generator["Frechet to clean"] == Cell(
        4.0, "3.5 to 4.5", pytest.approx(0.2551, abs=1e-4)
    )
    assert generator["KID"] == Cell(0.25, "± 0.12", 0.125)
    assert (generator["new measure"], teacher["new measure"]) == (Cell(7.5), Cell(None))
    assert generator["network calls"] == Cell(1)
    assert not {"flag", "notes", "frechet low", "kid standard error"} & {*table.titles}
    text = page_of(workspace).text
    assert "4.0 3.5 to 4.5" in text
    assert "0.25 ± 0.12" in text


def test_without_clean_images_the_page_says_so_and_shows_proximal_distances(workspace):
    def forget(summary):
        for name in (*evaluate.MODELS, "noisy_data"):
            summary[name]["frechet"] = None
            summary[name]["by_features"]["fashion-classifier"]["frechet"] = None
        summary["protocol"]["without_frechet"] = "there are no clean images"
        summary["protocol"] |= {"sigma": "auto", "sigma_hat": 0.123456}
        summary["selection"] = {"checkpoints": 4}

    edit(workspace.summary, forget)
    selection = workspace.report("evaluate") / "selection.csv"
    header, *rows = selection.read_text().splitlines()
    assert header.endswith(",frechet")
    selection.write_text("\n".join([header, *(row.rpartition(",")[0] + "," for row in rows)]))
    page = page_of(workspace)
    assert "A dash: there are no clean images." in page.text
    assert "noise 0.1235 (estimated)" in page.text
    assert "rank correlation" not in page.text
    assert page.tags.count("svg") == 5
    best = json.loads(workspace.summary.read_text())["generator"]["proximal_frechet"]
    label = "one-step generator Proximal Frechet, fashion-classifier"
    error = json.loads(workspace.summary.read_text())["generator"]["by_features"]
    error = error["fashion-classifier"]["proximal_frechet_standard_error"]
    assert f"{as_number(best, error)} {label}" in page.text


def test_an_estimate_of_the_noise_is_shown_with_its_checks(workspace):
    check_ = {"name": "white", "verdict": "suspicious", "value": 1, "text": "neighbours correlate"}
    estimate = {
        "sigma": 0.25, "low": 0.24, "high": 0.27, "patches": 12345, "images": 99,
        "alternatives": {"larger patches": 0.26}, "checks": [check_],
    }  # fmt: skip
    document = {"sigma": 0.2, "sigma_hat": 0.3, "estimate": estimate}
    (workspace.report("corrupt") / "noise.json").write_text(json.dumps(document))
    text = page_of(workspace).text
    assert "Assumed: 0.3. Estimated from the noisy images alone: 0.250 (0.240 to 0.270)" in text
    assert "12,345 flat patches" in text
    assert "white suspicious neighbours correlate" in text
    assert "larger patches 0.260" in text


def test_one_generator_has_one_distance_and_other_checkpoints_are_relative(workspace):
    held = {"heldout_proximal_frechet": 0.5, "heldout_proximal_frechet_standard_error": 0.02}
    named = {"chosen": {"images": 64, **held, "frechet": 2.5},
             "last": {"images": 1600, **held, "frechet": 3.0},
             "oracle": {"images": 128, **held, "frechet": 2.0}}  # fmt: skip
    edit(workspace.summary, lambda summary: summary["selection"].update(named))
    text = page_of(workspace).text
    assert "Frechet to clean, against the chosen one chosen 64 0.50 +0 % last 1,600 0.50 +20 % "\
        "oracle 128 0.50 -20 %" in text  # fmt: skip


def test_the_page_begins_with_date_code_and_what_differs(workspace):
    os.utime(workspace.summary, (0, 1.7e9))
    text = page_of(workspace).text.partition("Result")[0]
    assert "2023-11-14 22:13 UTC, no commit that git knows here. Run sigma 0.5, sid" in text
    assert "pretrain.batch_size 8 default 128" in text
    assert "corrupt.sigma" not in text
    assert "network.sigma_data" not in text


ROWS = [{"images": str(n), "proximal_frechet": str(value), f"proximal_frechet{ERROR}": "0.1"}
        for n, value in enumerate((9.0, 2.0, 3.0))]  # fmt: skip


@pytest.mark.parametrize(
    ("generator", "losses", "rows", "words"),
    [
        ((1.0, 1.0), [2.0] * 5 + [1.0] * 15, ROWS[:2], []),
        ((2.5, 1.0), [], [], ["did not improve on its teacher: Frechet to clean is 2.50, and 2.00 "
                              "for teacher, Truncated"]),
        ((1.0, 2.0), [], [], ["Proximal Frechet is 2.00, and 2.00", "alias champion"]),
        ((1.0, 1.0), [1.0] * 18 + [1.2] * 2, [], ["mean loss of the last tenth of its training is "
                                                  "20.0 % above"]),
        ((1.0, 1.0), [], ROWS, ["got worse after 1 images: its Proximal distance rose from 2.00 "
                                "to 3.00"]),
        ((1.0, 1.0), [], ROWS[1:], ["its first checkpoint, after 1 images, was chosen"]),
    ],
)  # fmt: skip
def test_a_training_that_got_worse_says_so(generator, losses, rows, words):
    both = dict(zip(("frechet", "proximal_frechet"), generator, strict=True))
    summary = {
        "generator": {**both, "by_features": {"own": both}},
        "teacher_truncated": {"frechet": 2.0, "proximal_frechet": 2.0},
    }
    found = problems(summary, losses, rows)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_problems_stand_above_the_result(workspace):
    def worsen(summary):
        summary["generator"]["frechet"] = 1e3

    edit(workspace.summary, worsen)
    text = page_of(workspace).text
    assert (
        0 < text.index("The generator did not improve on its teacher") < text.index("noisy data")
    )


def test_figures_show_the_numbers_that_they_were_given():
    marks = {"chosen": 1, "last": 2}
    healthy = ([1, 3], [5.0, 1.0])
    figure = draw_curve([1, 2, 3], [5.0, 4.0, 60.0], ylabel="y", marks=marks, healthy=healthy)
    (axes,) = figure.axes
    shape, line, *rings = axes.lines
    assert shape.get_xydata().tolist() == [[1, 5], [3, 1]]
    assert line.get_xydata().tolist() == [[1, 5], [2, 4], [3, 60]]
    found = {ring.get_label(): ring.get_xydata().tolist() for ring in rings}
    assert found == {"chosen": [[2, 4]], "last": [[3, 60]]}
    assert (axes.get_yscale(), axes.get_xscale()) == ("log", "linear")

    times = range(0, 100, 10)
    rows = [(t, level, t + 1.0) for t in times for level in (">20", "<=20", "<=0.5")]
    (axes,) = draw_levels(rows, ylabel="y").axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["≤0.5", "≤20", ">20"]
    shown = [line.get_ydata()[0] - 1 for line in axes.lines]
    assert len(shown) == NUM_TIMES
    assert (shown[0], shown[-1]) == (0, 90)

    points = {"proximal": [3.0, 1.0, 2.0], "clean": [7.0, 9.0, 8.0], "marks": {"chosen": 2}}
    axes, _ = draw_agreement(**points, xlabel="x", ylabel="y").axes
    assert axes.collections[0].get_offsets().tolist() == [[3, 7], [1, 9], [2, 8]]
    (chosen,) = axes.lines
    assert chosen.get_xydata().tolist() == [[2, 8]]


def test_the_checkpoint_that_was_chosen_is_ringed_and_each_axis_says_what_it_shows(workspace):
    study = workspace.report("evaluate") / "selection.csv"
    rows = [(0, 5.0, 0.1, 7.0), (64, 2.0, 0.5, 8.0), (160, 3.0, 0.1, 9.0)]
    held = "heldout_proximal_frechet"
    write_csv(study, ["images", held, f"{held}_standard_error", "frechet"], rows)
    params = small()
    params = params.model_copy(
        update={"evaluate": params.evaluate.model_copy(update={"features": ["inception-edm"]})}
    )
    trajectory = workspace.report("distill") / "trajectory.csv"
    seen = [(images, "", near, error) for images, near, error, _ in rows]
    header = ["images", "gap", "proximal_frechet", "proximal_frechet_standard_error"]
    write_csv(trajectory, header, seen)
    choice, agreement = draw_choice(params, workspace, "inception-edm")
    (axes,) = choice.figure.axes
    rings = {line.get_label(): line.get_xydata().tolist() for line in axes.lines[1:]}
    assert rings == {"chosen": [[0.064, 2]], "last": [[0.16, 3]], "oracle": [[0, 5]]}
    assert axes.get_ylabel() == "Proximal Frechet, held out"
    assert "Proximal Frechet distance to held-out noisy images, in fashion-" in choice.text
    axes, _ = agreement.figure.axes
    rings = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert rings == {"chosen": [[2, 8]], "last": [[3, 9]], "oracle": [[5, 7]]}
    assert axes.get_xlabel() == "Proximal Frechet, held out (fashion-classifier)"
    assert axes.get_ylabel() == "FID to clean (inception-edm)"
    assert "in fashion-classifier features, which chose" in agreement.text
    assert "in inception-edm features, which the choice did not see" in agreement.text


def test_each_noisy_image_stands_below_the_clean_one_that_it_shows(finished):
    clean = ImageStore.open(finished.artifact("prepare"))
    noisy = ImageStore.open(finished.artifact("corrupt") / "train")
    shown = to_uint8(clean.take(noisy.index[:NUM_SHOWN]))
    picture = np.asarray(Image.open(finished.report("evaluate") / "comparison.png"))
    for column, image in enumerate(shown):
        left = 150 + 2 + column * 66
        tile = picture[2:66:8, left : left + 64 : 8, 0]
        np.testing.assert_array_equal(tile, image[0])


def test_nearest_neighbours_are_shown_where_there_are_any(workspace):
    change = {"new_ratio": 0.98765, "verdict": f"none found{HOSTILE}", "noticed_from": None}
    edit(workspace.summary, lambda summary: summary["memorisation"].update(change))
    page = page_of(workspace)
    assert "neighbours" in page.ids
    for text in ("new ratio 0.988", f"None found{HOSTILE}.", "noticed from -", "recognised"):
        assert text in page.text
    (workspace.report("evaluate") / "neighbours.png").unlink()
    page = page_of(workspace)
    assert "neighbours" not in page.ids
    assert page.tags.count("img") == 4


def test_a_report_needs_results(workspace):
    workspace.summary.unlink()
    with pytest.raises(DataError, match=r"summary.json does not exist yet; run `dvc repro`"):
        write_report(small(), workspace, seconds=1.0)
    assert not workspace.report_page.exists()


def test_a_large_picture_is_embedded_smaller_and_a_small_one_as_it_is(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    for size in (20, 500):
        Image.fromarray(noise[:size]).save(tmp_path / f"{size}.png")
    assert embed(tmp_path / "20.png", "x").startswith('<img src="data:image/png;')
    large = embed(tmp_path / "500.png", "x")
    assert large.startswith('<img src="data:image/webp;')
    assert len(large) < (tmp_path / "500.png").stat().st_size
    assert 'alt="&#34;&gt;&lt;"' in embed(tmp_path / "20.png", '"><')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((None,), "-"), ((35,), "35"), ((4000,), "4,000"), ((1234.5,), "1,234"),
        ((999.9,), "1,000"),
        ((1.0,), "1.00"), ((0.012346,), "0.0123"), ((-2.5,), "-2.50"), ((6.9052, 0.15), "6.91"),
        ((7.676, 0.2), "7.7"), ((0.99829, 0.0495), "1.00"), ((2857.6, 12.0), "2,858"),
        ((2857.6, 30.0), "2,860"), ((4.0, 0.0), "4.00"), ((None, 1.0), "-"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_are_known(value, text):
    assert as_number(*value) == text


@needs_browser
def test_a_browser_shows_it_on_a_desk_and_on_a_phone(workspace, tmp_path):
    page_of(workspace)
    for width in (1100, 500):
        seen = look(workspace.report_page, tmp_path, width=width)
        assert seen.shape[1] == width
        assert seen.std() > 20
        # Ink from top to bottom: text, then pictures.
        assert all((band < 128).any() for band in np.array_split(seen, 7))
    for width in (700, 500):
        content, window = measured_width(workspace.report_page, tmp_path, width=width)
        assert content <= window
