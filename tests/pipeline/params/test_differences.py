"""What runs are called, and what differs from the defaults."""

import pytest

from pipeline.params.differences import changed, run_name
from pipeline.params.presets import load_preset
from pipeline.params.reader import flatten, leaves, load_params, read_mapping
from sandbox import ROOT

SHIPPED = flatten(load_params(ROOT))


def test_the_defaults_are_the_values_that_are_shipped():
    shipped = leaves(read_mapping(ROOT / "params.yaml"))
    assert leaves(read_mapping(ROOT / "pipeline/params/defaults.yaml")) == shipped
    assert changed(SHIPPED) == {}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "sigma 0.5, sid"),
        ({"corrupt.sigma": 0.2, "distill.divergence": "dmd"}, "sigma 0.2, dmd"),
        ({"corrupt.sigma": "auto"}, "sigma auto, sid"),
        ({"corrupt.sigma_hat": 0.6}, "sigma 0.5 assumed 0.6, sid"),
        ({"seed": 1, "pretrain.objective": "standard"}, "sigma 0.5, sid, seed 1, standard"),
        ({"data.max_images": 9, "compute.device": "cpu"}, "sigma 0.5, sid, max_images 9"),
        ({"run.eval_batch_size": 9}, "sigma 0.5, sid"),
        (load_preset("quick"), "sigma 0.5, sid (quick)"),
        ({**load_preset("quick"), "seed": 3}, "sigma 0.5, sid, seed 3 (quick)"),
        (
            {f"{section}.{key}": 7.0 for section in ("pretrain", "distill")
             for key in ("kimg", "learning_rate", "lr_warmup_kimg")},
            "sigma 0.5, sid, 6 other values",
        ),
    ],
)  # fmt: skip
def test_a_run_is_named_by_what_differs(values, name):
    assert run_name({**SHIPPED, **values}) == name


def test_a_difference_has_both_values():
    assert changed({**SHIPPED, "network.channel_mult": "[1]", "new": 1}) == {
        "network.channel_mult": ("[1]", "[1, 2]"),
        "new": ("1", "-"),
    }
