"""Tables on pages, recomputed from the files of numbers beside them."""

import csv
import json
import re
from collections import defaultdict
from io import StringIO
from statistics import fmean, quantiles, stdev

import pytest
from rich.console import Console

from pipeline.reports.show import show_summary
from pipeline.stage_io.paths import Paths
from sandbox import ROOT

RESULTS = ROOT / "docs/results"
NUMBER = re.compile(r"-?\d*\.?\d+(?:e-?\d+)?")
MODELS = ("noisy_data", "teacher_full", "teacher_truncated", "generator")


def table(page, heading):
    """Rows below the first header that contains the heading, as lists of cells."""
    lines = iter(page.read_text().splitlines())
    next(line for line in lines if line.startswith("|") and heading in line)
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return rows


def rows_of(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def shows(text, *values):
    """Whether the numbers of a text are these values, rounded to the digits that it has."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    found = NUMBER.findall(text)
    assert len(found) == len(values), (text, values)
    for number, value in zip(found, values, strict=True):
        mantissa, _, exponent = number.partition("e")
        digits = len(mantissa.partition(".")[2]) - int(exponent or 0)
        assert abs(float(number) - value) <= 0.5001 * 10.0**-digits, (text, values)


def mean_and_sd(values):
    return fmean(values), stdev(values)


def test_a_rounded_number_is_recognised_and_another_one_is_not():
    shows("1,250 +- .05 (-3e-10)", 1249.6, 0.0458, -3.4e-10)
    for text in ("1.11", "1.1e-3", "12", "-1.10"):
        with pytest.raises(AssertionError):
            shows(text, 1.1049)


def test_readme():
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("default/seed*.json"))]
    assert len(runs) == 3
    for row, model in zip(table(ROOT / "README.md", "network evaluations"), MODELS, strict=True):
        name, clean, proximal = row
        shows(clean, *mean_and_sd(clean_distances(runs, model, "fashion-classifier")))
        if model != "noisy_data":
            evaluations = int(re.search(r"\((\d+)\)", name)[1])
            assert {run[model]["evaluations"] for run in runs} == {evaluations}
            shows(proximal, *mean_and_sd([run[model]["proximal_frechet"] for run in runs]))
    sentence = re.search(
        r"EfficientNet-Lite0 agrees: ([\d, ]+)\.", (ROOT / "README.md").read_text()
    )
    means = [fmean(clean_distances(runs, model, "efficientnet-lite0")) for model in MODELS]
    shows(sentence[1], *means)


def clean_distances(runs, model, space):
    return [run[model]["by_features"][space]["frechet"] for run in runs]


def test_readme_shows_what_make_run_prints(tmp_path):
    summary = json.loads((RESULTS / "default/seed0.json").read_text())
    paths = Paths(tmp_path)
    paths.summary.parent.mkdir(parents=True)
    paths.summary.write_text(json.dumps(summary))
    console = Console(file=StringIO(), width=100, color_system=None)
    show_summary(paths, console)
    printed = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    shown = re.findall(r"```\n(Distances.+?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(shown) == 1
    assert printed.startswith(shown[0])


def test_method():
    cells = defaultdict(list)
    for row in rows_of(RESULTS / "method/cells.csv"):
        cells[row["objective"], row["model"], row["sigma"]].append(row)
    names = {
        "teacher, Full": "teacher_full",
        "teacher, Truncated": "teacher_truncated",
        "teacher, Truncated at sigma": "teacher_truncated_exact",
        "generator, SiD": "sid",
        "generator, DMD": "dmd",
        "generator, SiD as the authors run it": "paper-method",
        "generator, SDS (30 kimg; at 0.2 12)": "sds",
    }
    objective = None
    for first, name, calls, *levels in table(RESULTS / "method/README.md", "objective"):
        objective = first or objective
        evaluations = []
        for sigma, cell in zip(("0.5", "0.2"), levels, strict=True):
            runs = cells[objective, names[name], sigma]
            assert len(runs) == 3
            distance, proximal = (
                [float(run[key]) for run in runs] for key in ("frechet", "proximal")
            )
            shows(cell, *mean_and_sd(distance), fmean(proximal))
            evaluations += {run["evaluations"] for run in runs}
        assert calls.split(", ") in (evaluations, evaluations[:1])


def test_selection():
    runs = rows_of(RESULTS / "selection/runs.csv")
    for sigma, *row in table(RESULTS / "selection/README.md", "chosen against best"):
        some = [run for run in runs if run["sigma"] == sigma]
        chosen, last, best, order = (
            [float(run[key]) for run in some] for key in ("chosen", "last", "best", "spearman")
        )
        above = [100 * (a / b - 1) for a, b in zip(chosen, best, strict=True)]
        later = [100 * (a / b - 1) for a, b in zip(last, best, strict=True)]
        told = [len(some), fmean(above), max(above), above.count(0), len(some), fmean(later)]
        shows(" ".join(row), *told, fmean(order), min(order))


def test_rulers():
    rows = rows_of(RESULTS / "selection/rulers.csv")
    for name, _, *cells in table(RESULTS / "selection/README.md", "has seen"):
        ruler = name.removesuffix(" (the default)").strip("`")
        for truth, regret, order in zip(
            ("fashion-classifier", "efficientnet-lite0"), cells[::2], cells[1::2], strict=True
        ):
            runs = [row for row in rows if (row["ruler"], row["truth"]) == (ruler, truth)]
            assert len(runs) in ({4} if truth == "fashion-classifier" else {4, 8})
            above = [100 * float(run["regret"]) for run in runs]
            shows(regret, fmean(above), max(above))
            shows(order, *(fmean(float(run[k]) for run in runs) for k in ("spearman", LATER)))


LATER = "spearman_later_half"
SETS = {
    "Fashion, 2,000": "fashion",
    "Fashion, 300": "fashion, 300",
    "CIFAR-10, 680": "colour",
    "CIFAR-10, grey, 1,000": "colour as grey",
    "Fashion averaged to 8 x 8, 4,000": "fashion 8 x 8",
    "random fields, amplitude 1 / frequency, 600": "rough fields",
}


def test_noise_intervals():
    rows = {
        (row["data"], row["sigma"]): row for row in rows_of(RESULTS / "noise_level/coverage.csv")
    }
    page = RESULTS / "noise_level/README.md"
    for name, *cells in [*table(page, "inside, width"), *table(page, "flat places")]:
        for place, sigma in enumerate(("0.05", "0.1", "0.2", "0.4")):
            row = {k: float(v) for k, v in rows[SETS[name], sigma].items() if k != "data"}
            estimate, inside = cells[2 * place : 2 * place + 2]
            interval = [row["low"], row["high"]] if "(" in estimate else []
            shows(estimate, row["estimate"], *interval)
            width = [] if interval else [100 * row["width"]]
            shows(inside, row["inside"], row["estimates"], *width)


NOISES = {
    "blurred by 0.5 pixels; enlarged twice": ["blurred by 0.5 pixels", "enlarged twice"],
    "white, and beside it coarse noise (3 pixels) 1.7 times as strong": [
        "white and coarse (3 pixels), 1 : 1.7"
    ],
    "white, and beside it smooth noise (1 pixel) as strong": ["white and smooth (1 pixel), 1 : 1"],
    "row stripes as strong as the noise": ["row stripes as strong"],
    "row stripes half as strong": ["row stripes half as strong"],
    "the same pattern in all images, half as strong": ["fixed pattern half as strong"],
    "each image scaled by 1 to 1.45": ["each image scaled by 1 to 1.45"],
    "each image scaled by 1 to 1.8": ["each image scaled by 1 to 1.8"],
    "twice as strong in a third of the images": ["twice as strong in a third of the images"],
    "Laplace": ["Laplace"],
    "uniform": ["uniform"],
    "photon": ["photon"],
    "2 % salt and pepper": ["2 % salt and pepper"],
    "JPEG of quality 75": ["JPEG of quality 75"],
}
PASS = ["white Gaussian", "scaled by 1 to 1.1", "fixed pattern, a tenth as strong"]


def test_noise_alarms():
    alarms = {
        (row["data"], row["noise"], row["sigma"]): row
        for row in rows_of(RESULTS / "noise_level/alarms.csv")
    }
    rows = table(RESULTS / "noise_level/README.md", "check that is meant for it")
    for name, _, *cells in rows:
        kinds = PASS if name.startswith("must pass") else [NOISES[name]][0]
        for data, cell in zip(
            ("fashion", "waves", "colour", "colour as grey"), cells, strict=True
        ):
            found = [
                [int(alarms[data, kind, s]["alarms"]) for kind in kinds] for s in ("0.05", "0.2")
            ]
            if kinds is PASS:
                shows(cell, *map(sum, found))
                assert {alarms[data, kind, "0.2"]["of"] for kind in kinds} == {"10"}
            else:
                assert [set(level) for level in found] == [{int(x)} for x in cell.split(", ")]


def test_sweep():
    runs = rows_of(RESULTS / "sweep/comparison.csv")
    names = {"noisy data": "noisy data", "generator, SiD": "one-step generator"}
    for name, _, *cells in table(RESULTS / "sweep/README.md", "images of"):
        for run, cell in zip(runs, cells, strict=True):
            place = f"(fashion-classifier): {names.get(name, name)}"
            values = [
                run.get(f"{kind} {place}") for kind in ("Frechet to clean", "Proximal Frechet")
            ]
            shows(cell, *(float(value) for value in values if value))


CLEAN = (1.0, 0.4, 0.1, 0.0, 0.0, 0.0)
FAKE_NOISE = {
    "none (theorem)": 0.0,
    "sigma_y (matched)": 1.0,
    "0.8 sigma_y": 0.8,
    "1.25 sigma_y": 1.25,
}


def law_of(noise, rank, sigma):
    """Variances of the page's first formula, in closed form."""
    if noise == "(clean data)":
        return CLEAN
    kept = 6 if noise == "(noisy data)" else rank
    excess = sigma**2 * (1 - FAKE_NOISE.get(noise, 0.0) ** 2)
    return [max(value + excess, 0.0) * (place < kept) for place, value in enumerate(CLEAN)]


def test_theorem():
    rows = rows_of(RESULTS / "theorem/table.csv")
    page = RESULTS / "theorem/README.md"
    laws = ("Fisher", "reverse KL", "SiD, alpha 0.5", "SiD, alpha 1", "SiD, alpha 1.2")
    for noise, *cells in table(page, "noise on the fake side | Fisher"):
        some = [row for row in rows if row["fake_noise"] == noise]
        narrow = [row for row in some if row["starts"] == "narrow"]
        for law, cell in zip(laws, cells, strict=False):
            values = [float(row["eigenvalue_error"]) for row in narrow if row["divergence"] == law]
            shows(cell, max(values))
        shows(cells[5], max(float(row["subspace_error"]) for row in narrow))
        arrived = defaultdict(int)
        for row in some:
            arrived[row["starts"], row["divergence"]] += int(row["arrived"])
        assert {f"{arrived['narrow', law]}/20" for law in laws} == {cells[6]}
        assert {f"{arrived['wide', law]}/20" for law in laws[:4]} == {cells[7]}
        assert f"{arrived['wide', laws[4]]}/20" == cells[8]

    def narrow_of(noise, rank, sigma):
        case = ("narrow", noise, str(rank), f"{sigma:g}")
        names = ("starts", "fake_noise", "rank", "sigma_y")
        return [row for row in rows if tuple(row[name] for name in names) == case]

    for noise, *cells in table(page, "generator of rank 3"):
        for rank, cell in zip((3, 6), cells, strict=True):
            if cell:
                shows(cell, *law_of(noise, rank, 0.5)[:rank])
    columns = [(3, 0.25), (3, 0.5), (3, 1.0), (6, 0.5)]
    for noise, *cells in table(page, "rank 3, sigma_y 0.25"):
        for (rank, sigma), cell in zip(columns, cells, strict=True):
            distance = sum(
                (a**0.5 - b**0.5) ** 2
                for a, b in zip(law_of(noise, rank, sigma), CLEAN, strict=True)
            )
            shows(cell, distance)
            drawn = [float(row["w2_generated"]) for row in narrow_of(noise, rank, sigma)]
            assert drawn == pytest.approx([distance] * len(drawn), rel=5e-3, abs=5e-5)


def test_toys():
    rows = {
        (row["toy"], row["sigma"], row["sigma_hat"], row["seed"], row["method"]): row
        for name in ("table.csv", "seeds.csv")
        for row in rows_of(RESULTS / "toys" / name)
    }

    def same(cell, *key):
        shows(cell, *(float(rows[key][name]) for name in ("distance", "wasserstein", "coverage")))

    page = RESULTS / "toys/README.md"
    methods = ("noisy", "Full", "Truncated", "Truncated at sigma", "one step")
    for name, *cells in table(page, "noisy | Full"):
        toy = name.partition(",")[0]
        sigma = "0.05" if "0.05" in name else "0.2"
        for method, cell in zip(methods, cells, strict=True):
            same(cell, toy, sigma, sigma, name[-1], method)
    assumed = ("0.1", "0.16", "0.2", "0.22", "0.25", "0.32")
    for method, *cells in table(page, "assumed / true"):
        for sigma_hat, cell in zip(assumed, cells, strict=True):
            same(cell, "moons", "0.2", sigma_hat, "0", method)


def test_features():
    found = rows_of(RESULTS / "features/response.csv")
    shown = table(RESULTS / "features/README.md", "in units of")
    for row, (_, *cells) in zip(found, shown, strict=True):
        values = []
        for space in ("fashion-classifier", "efficientnet-lite0"):
            values += [float(row[space]), float(row[space]) / float(found[0][space])]
        shows(" ".join(cells), *values)


def test_frechet():
    found = json.loads((RESULTS / "frechet/one-thread.json").read_text())
    page = RESULTS / "frechet/README.md"
    for row, cells in zip(found["timing"], table(page, "ours / clean-fid"), strict=True):
        keys = ("distance", "relative_difference", "ours_seconds", "clean_fid_seconds")
        shows(" ".join(cells[2:]), *(row[key] for key in keys), row["ratio_processor"])
        shows(cells[0], row["features"])
    places = (("frechet",), ("kernel_distance",), ("precision", "recall"), ("density", "coverage"))
    for name, *cells in table(page, "kernel distance"):
        values = found["agreement"][{"dsd": "ours"}.get(name.split()[0], name.split()[0])]
        for keys, cell in zip(places, cells, strict=True):
            shows(cell, *(values[key] for key in keys if key in values))


def test_operators():
    kinds = ("mask", "blur", "downsample", "fourier")
    runs = [json.loads((RESULTS / f"operators/{kind}.json").read_text()) for kind in kinds]
    rows = {row[0]: row[1:] for row in table(RESULTS / "operators/README.md", "mask")}
    names = {
        "noisy data": "noisy_data",
        "teacher, Full": "teacher_full",
        "teacher, Truncated": "teacher_truncated",
        "teacher, Truncated at sigma": "teacher_truncated_exact",
        "one-step generator": "generator",
    }
    for name, key in names.items():
        for run, cell in zip(runs, rows[name], strict=True):
            if "enlarged" in cell:
                continue  # measured apart, as the page says
            values = (run[key]["frechet"], run[key].get("proximal_frechet"))
            shows(cell.removeprefix("- "), *(value for value in values if value is not None))
    shows(
        " ".join(rows["rank correlation of both distances over 5 checkpoints"]),
        *(run["selection"]["spearman"] for run in runs),
    )


def test_soak():
    from bench.reliability import soak

    found = json.loads((RESULTS / "soak/turns.json").read_text())
    assert soak.table(soak.judge(found["turns"])) in (RESULTS / "soak/README.md").read_text()


def test_kills():
    from bench.reliability import kills

    found = json.loads((RESULTS / "kills/trials.json").read_text())
    trials = []
    for trial in found["trials"]:
        plans = [kills.Plan(**kill.pop("plan")) for kill in trial["kills"]]
        hits = [kills.Kill(plan, **kill) for plan, kill in zip(plans, trial["kills"], strict=True)]
        trials.append(kills.Trial(trial["stage"], hits, trial["findings"]))
    page = kills.page(found, trials, found["general"])
    assert page == (RESULTS / "kills/README.md").read_text()


def test_speed():
    folder = RESULTS / "speed"
    text = (folder / "cpu.md").read_text()
    for contest in json.loads((folder / "cpu.json").read_text())["contests"]:
        lines = text.split(f"## {contest['name']}\n")[1].splitlines()
        for row in (row for row in contest["contestants"] if row["missing"] is None):
            each = [taken / (row["times"] * row["items"]) for taken in row["seconds"]]
            values = each if contest["unit"] == "s" else [1 / seconds for seconds in each]
            cell = next(line for line in lines if line.startswith(f"| {row['label']} |"))
            low, middle, high = quantiles(values, n=4, method="inclusive")
            shows(cell.split("|")[2].replace("e-05", "e-5"), middle, low, high)
    limits = ("at best, products at the peak", "at best, operation by operation")
    columns = [
        *(("Training a teacher", "EDM", name) for name in ("the first is faster", *limits)),
        ("Training a teacher", "EDM", "the same, of use"),
        *(("Distilling", "SiD", name) for name in ("the first is faster", *limits)),
        ("18 steps of Heun", "EDM", "the first is faster"),
        ("One step", "EDM's network", "the first is faster"),
    ]
    rows = table(folder / "README.md", "aim")
    for (kind, rival, column), (_, _, *cells) in zip(columns, rows, strict=True):
        for size, cell in zip(("small", "middle", "paper"), cells, strict=True):
            if cell != "not measured":
                lines = text.split(f"## {kind}: {size}, ")[1].splitlines()
                place = [part.strip() for part in lines[2].split("|")].index(column)
                row = next(line for line in lines if line.startswith(f"| {rival} |"))
                found = map(float, NUMBER.findall(row.split("|")[place]))
                for number, value in zip(NUMBER.findall(cell), found, strict=True):
                    assert float(number) == pytest.approx(value, abs=0.0051)


def test_dropout():
    rows = rows_of(RESULTS / "dropout/runs.csv")

    def runs(data, arm, step):
        wanted = [data, arm, step]
        return [float(r["frechet"]) for r in rows if [r["data"], r["arm"], r["step"]] == wanted]

    for data, arm, *cells, _ in table(RESULTS / "dropout/README.md", "data | dropout"):
        for step, cell in zip(("100", "200", "300", "400"), cells, strict=True):
            own, now = runs(data, arm, step), runs(data, "now", step)
            assert len(own) == 3
            shown = [fmean(own), stdev(own)]
            if arm != "now":
                paired = [b - a for a, b in zip(own, now, strict=True)]
                shown += [fmean(paired), stdev(paired)]
            shows(cell, *shown)


def test_noise_spectrum():
    rows = rows_of(RESULTS / "noise_spectrum/coverage.csv")
    page = RESULTS / "noise_spectrum/README.md"
    for name, *cells in table(page, "32 x 32: spectrum"):
        found = [row for row in rows if row["noise"] == name]
        assert [row["images"][:2] for row in found] == ["32", "64"]
        keys = ("spectrum_inside", "level_inside", "level_over_truth", "mean_half_width")
        values = [float(row[key]) for row in found for key in keys]
        for cell, value in zip(cells, values, strict=True):
            shows(cell, value)
    inside = [sum(int(row[f"{of}_inside"]) for row in rows) for of in ("spectrum", "level")]
    sentence = re.search(r"\*\*(\d+ of \d+) trials .*, (\d+ hold)", page.read_text())
    shows(sentence[1], inside[0], sum(int(row["trials"]) for row in rows))
    shows(sentence[2], inside[1])
