"""Whole stages on tiny images: what tests of trainings share."""

import signal

from stage_helpers import Recorder, params_with

from pipeline.execution.run import run_stage

NETWORK = {"model_channels": 8, "channel_mult": [1], "attention_resolutions": []}
SCHEDULE = {"batch_size": 8, "kimg": 0.16, "lr_warmup_kimg": 0.0}
SELECTION = {
    "features": "fashion-classifier",
    "every_kimg": 0.064,
    "num_samples": 70,
    "save_top_k": 1,
}


def tiny(**changes):
    sections = {
        "data": {"path": "images.parquet", "pad": 0, "resolution": 8},
        "corrupt": {"num_heldout": 70, "workers": 1},
        "network": NETWORK,
        "pretrain": {**SCHEDULE, "sample_every_kimg": 0.08},
        "distill": {**SCHEDULE, "selection": SELECTION},
        "evaluate": {"features": ["fashion-classifier"], "num_samples": 70},
        "compute": {"device": "cpu", "precision": "float32"},
        "run": {"checkpoint_minutes": 1000.0},
    }
    return params_with(**{k: {**v, **changes.get(k, {})} for k, v in sections.items()})


def run(stage, params, paths, log=None):
    paths.report(stage.__name__.split(".")[-1]).mkdir(parents=True, exist_ok=True)
    run_stage(stage, params, paths, log or Recorder())


class Stopper(Recorder):
    """Asks the stage to stop after some questions."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def stop_signal(self):
        self.left -= 1
        return signal.SIGINT if self.left < 0 else None
