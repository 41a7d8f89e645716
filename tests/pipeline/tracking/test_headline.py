"""The few numbers by which runs are compared."""

import json

from pipeline.tracking.headline import HEADLINES, headlines, not_improved, short_headlines
from sandbox import ROOT

SUMMARY = json.loads((ROOT / "docs/results/default/seed0.json").read_text())


def test_each_headline_is_a_number_of_the_summary():
    found = headlines(SUMMARY)
    own, teacher = SUMMARY["generator"], SUMMARY["teacher_truncated"]
    assert found["generator/frechet"] == own["frechet"]
    assert found["proximal/teacher_truncated"] == teacher["proximal_frechet"]
    best = min(SUMMARY[f"teacher_{name}"]["frechet"] for name in ("full", "truncated"))
    best = min(best, SUMMARY["teacher_truncated_exact"]["frechet"])
    assert abs(found["generator/gain_percent"] - 100 * (1 - own["frechet"] / best)) < 1e-9
    assert {*found} <= {one.name for one in HEADLINES}
    assert len(found) > 9
    assert not_improved(SUMMARY) == []


def test_dvc_has_few_columns_of_few_digits():
    found = short_headlines(SUMMARY)
    assert found["frechet"] == float(f"{SUMMARY['generator']['frechet']:.4g}")
    # With names of experiments and two parameters they fit 120 columns.
    assert sum(max(len(name), 6) + 2 for name in found) <= 64


def test_without_clean_images_the_proximal_distance_says_what_was_gained():
    blind = {name: {**SUMMARY[name], "frechet": None, "by_features": {}}
             for name in SUMMARY if name.startswith(("teacher", "generator"))}  # fmt: skip
    blind["generator"]["proximal_frechet"] = 1e3
    found = headlines({**blind, "protocol": {}})
    assert found["generator/gain_percent"] < 0
    assert "generator/frechet" not in found
    assert not_improved({**blind, "protocol": {}}) == ["proximal_frechet"]


def test_the_manual_explains_each_headline():
    page = (ROOT / "docs/metrics.md").read_text()
    for one in HEADLINES:
        short = f"`{one.short}`" if one.short else ""
        assert f"| `{one.name}` | {short} | {one.better} | {one.meaning} |" in page
