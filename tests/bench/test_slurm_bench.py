"""A short part of ``python -m bench.slurm``: a real SLURM requeues a run, which another meets."""

import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench.slurm import __main__ as bench
from bench.slurm.clones import Stop, copy, prepared
from bench.slurm.lab import Lab, missing
from bench.slurm.sharing import Row
from bench.slurm.stops import interrupted, requeue

SHORT = {"pretrain.batch_size": 256, "pretrain.kimg": 76.8}


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_requeued_run_saves_continues_with_the_same_bytes_and_shares_its_clone_with_none(
    tmp_path,
):
    base = prepared(tmp_path / "base")
    base.set(SHORT)
    whole, clone = copy(base, tmp_path / "whole"), copy(base, tmp_path / "clone")
    uninterrupted = threading.Thread(target=whole.run, args=["dvc", "repro", "pretrain"])
    uninterrupted.start()  # beside the other
    second = []

    def way(lab, clone, job):
        script = ("bash", "slurm/run.sbatch", "pretrain")
        second.append(lab.run("node2", *script, cwd=clone.root, env=clone.env, code=6))
        return requeue(lab, clone, job)

    # Names of sockets may have 108 bytes, fewer than the folders of tests side by side have.
    short = TemporaryDirectory(prefix="lab", ignore_cleanup_errors=True)
    with short as folder, Lab(Path(folder)) as lab:
        seen, findings = interrupted(lab, clone, way, ("pretrain",))
    uninterrupted.join()
    assert findings == [], seen
    assert clone.differences(whole.files(("pretrain",)), ("pretrain",)) == []
    assert "is already running on host node1 in process" in second[0]


@pytest.mark.parametrize(
    ("stop", "resumed", "text"),
    [
        (Stop(before=512, stopped=512, seconds=0.1, step_seconds=0.1), 512, None),
        (Stop(before=512, stopped=256, seconds=0.1, step_seconds=0.1), 256, "512 images were"),
        (Stop(before=512, stopped=700, seconds=0.1, step_seconds=0.1), 700, "whole number"),
        (Stop(before=512, stopped=768, seconds=2.0, step_seconds=0.1), 768, "within a step"),
        (Stop(before=512, stopped=768, seconds=0.1, step_seconds=0.1), 512, "resumed after 512"),
    ],
)
def test_a_stop_that_loses_work_is_found(stop, resumed, text):
    findings = stop.findings(resumed, batch=256)
    assert [text in finding for finding in findings] == [True] * (text is not None)


def test_without_slurm_nothing_is_tried_and_the_page_counts_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(bench, "missing", lambda: "only root may")
    assert bench.main([]) == 0
    assert capsys.readouterr().out == "skipped: only root may\n"
    row = Row("a stop")
    row.expect(True, "saved")
    row.expect(False, "2 files | differ")
    part = {"commit": "0123456789", "rows": [vars(row)]}
    page = bench.render({"locks": part})
    assert "**1 rows, 1 not as promised.**" in page
    assert "| locks | a stop | saved<br>**not as promised: 2 files \\| differ** | no |" in page
