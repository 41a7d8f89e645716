"""Output folders of stages that are links into DVC's cache, old, foreign, or on a full disk."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from stage_helpers import ROOT, Recorder, files_of
from tiny_stages import SELECTION, run, tiny

from pipeline.stage_io.outputs import replaced_outputs
from pipeline.stage_io.paths import Paths
from pipeline.stages import corrupt, distill, evaluate, prepare, pretrain

OUTPUTS = {
    prepare: ["data/prepare", "reports/prepare"],
    corrupt: ["data/corrupt", "reports/corrupt"],
    pretrain: ["data/pretrain", "reports/pretrain"],
    distill: ["data/distill", "reports/distill"],
    evaluate: ["reports/evaluate", "reports/summary.json"],
}
SHORTER = {"kimg": 0.08, "learning_rate": 3.0e-4}
OTHER = tiny(
    data={"max_images": 148},
    corrupt={"sigma": 0.4},
    pretrain=SHORTER,
    distill={**SHORTER, "selection": {**SELECTION, "every_kimg": 0.04}},
    evaluate={"num_samples": 71},
)


def dvc(paths, *arguments):
    command = [sys.executable, "-m", "dvc", "--quiet", *arguments]
    subprocess.run(command, cwd=paths.root, check=True)


def under_dvc(paths, link):
    """Put all outputs into DVC's cache and link them from there."""
    dvc(paths, "init", "--no-scm")
    dvc(paths, "config", "cache.type", link)
    dvc(paths, "add", *(name for names in OUTPUTS.values() for name in names))
    linked = paths.root / "data/distill/generator/weights.safetensors"
    assert linked.is_symlink() if link == "symlink" else linked.stat().st_nlink > 1
    return paths.root / ".dvc" / "cache"


def test_evaluate_has_a_folder_of_reports_alone(tmp_path):
    paths = Paths(tmp_path)
    with replaced_outputs(paths, "evaluate") as fresh:
        (fresh.report("evaluate") / "table.csv").write_text("1")
    assert [*tmp_path.rglob("*")] == [
        tmp_path / "reports",
        tmp_path / "reports/evaluate",
        tmp_path / "reports/evaluate/table.csv",
    ]


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_stage_run_by_hand_changes_nothing_in_dvc_s_cache_and_leaves_nothing_old(link, copied):
    for file in (name for names in OUTPUTS.values() for name in names[:1]):
        if (copied.root / file).is_dir():
            (copied.root / file / "stale").write_text("of another run")
    cache = under_dvc(copied, link)
    cached = files_of(cache)
    for stage, names in OUTPUTS.items():
        before = files_of(copied.root / names[0])
        run(stage, OTHER, copied)
        after = files_of(copied.root / names[0])
        assert "stale" in before
        assert "stale" not in after
        assert before.items() - after.items(), stage
        assert files_of(cache) == cached, stage
    moments = [f"{seen:09d}" for seen in (0, 40, 80)]
    for folder in ("data/distill/trajectory", "reports/distill/samples"):
        assert [file.stem for file in sorted((copied.root / folder).iterdir())] == moments
    assert not [*copied.root.glob("*/.*.new"), *copied.root.glob("*/.*.old")]


@pytest.mark.parametrize("stage", [pretrain, distill])
def test_a_disk_that_is_full_while_outputs_are_copied_costs_no_training(
    stage, copied, monkeypatch
):
    name = stage.__name__.split(".")[-1]
    before = files_of(copied.artifact(name))

    def refuse(source, target):
        target.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfileobj", refuse)
        with pytest.raises(OSError, match="No space left") as refused:
            run(stage, OTHER, copied)
    assert refused.value.errno == errno.ENOSPC, "or the command line could not tell the remedy"
    assert files_of(copied.artifact(name)) == before
    assert not [*copied.root.glob("*/.*.new")]
    log = Recorder()
    run(stage, OTHER, copied, log)
    assert "resumed after 80 images" in log.lines
    assert files_of(copied.artifact(name)) != before


@pytest.mark.parametrize("folder", ["data/pretrain", "reports/pretrain"])
def test_outputs_that_cannot_be_replaced_are_refused_before_the_training(
    folder, copied, monkeypatch
):
    foreign = copied.root / folder
    monkeypatch.setattr(os, "access", lambda place, mode: place != foreign)
    log = Recorder()
    with pytest.raises(PermissionError) as refused:
        run(pretrain, OTHER, copied, log)
    assert refused.value.filename == str(foreign)
    assert log.bars == []
    assert not copied.state("pretrain").exists()


@pytest.mark.parametrize("end", ["new", "old"])
@pytest.mark.parametrize("folder", ["data/.distill", "reports/.distill"])
@pytest.mark.parametrize("tool", ["git", "dvc"])
def test_what_a_kill_leaves_beside_an_output_is_no_part_of_the_project(tool, folder, end):
    command = ["git"] if tool == "git" else [sys.executable, "-m", "dvc"]
    ignored = [*command, "check-ignore", "--quiet", f"{folder}.{end}"]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0
