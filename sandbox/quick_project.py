"""This project's flows over stages that take a moment: for tests of what is around the stages."""

import json
from pathlib import Path

from sandbox.workspace import PROJECT, Workspace, copy_project

__all__ = ["PROJECT", "executed", "experiments", "looks", "quick_project"]

DVC_YAML = """
stages:
  prepare:
    cmd: python work.py prepare
    deps: [work.py, "${data.path}"]
    params: [data]
    outs: [data/prepare]
  pretrain:
    cmd: python work.py pretrain
    deps: [work.py, data/prepare]
    params: [corrupt, pretrain]
    outs: [data/pretrain]
  evaluate:
    cmd: python work.py evaluate
    deps: [work.py, data/pretrain]
    params: [distill]
    outs: [reports/evaluate]
    metrics: [reports/summary.json]
"""

WORK = '''
"""Stages that write what they were given; the home's file `executed` has a line for each."""

import json
import sys
import time
from pathlib import Path

from pipeline.params.reader import load_params
from pipeline.stage_io.paths import home_of
from pipeline.runtime.progress import make_progress

stage, root = sys.argv[1], Path.cwd()
params = load_params(root)
with (home_of(root) / "executed").open("a") as log:
    log.write(f"{stage} {params.corrupt.sigma} {params.distill.divergence}\\n")
if params.pretrain.kimg == 666 and stage == "pretrain":
    sys.exit("error: the loss is NaN")
while (home_of(root) / f"hold-{stage}").exists():
    time.sleep(0.05)
with make_progress(stage, 100) as progress:
    progress.update(50)
    progress.update(100)
if stage != "evaluate":
    Path(f"data/{stage}").write_text(f"{params.corrupt.sigma} {params.data.max_images}\\n")
    sys.exit()
sigma, space = params.corrupt.sigma, "fashion-classifier"
both = {"frechet": 10 * sigma, "proximal_frechet": sigma}
row = {**both, "by_features": {space: both}}
protocol = {"features": space, "extractors": {space: "1"}, "num_samples": 9, "seed": params.seed}
protocol |= {"sigma": sigma, "sigma_hat": sigma, "operator": {"kind": "identity"}}
Path("reports/evaluate").mkdir(parents=True, exist_ok=True)
Path("reports/evaluate/run.json").write_text(json.dumps({"run_id": "0123456789abcdef"}))
Path("reports/summary.json").write_text(
    json.dumps({"generator": row, "teacher_full": row, "protocol": protocol})
)
'''


def quick_project(root: Path) -> Workspace:
    """A project with one commit, this one's flows and quick stages; nothing has run."""
    files = ("params.yaml", "prefect.yaml", ".gitignore")
    copy_project(root, ("dsd", "pipeline", "flows"), files)
    (root / "reports").mkdir(parents=True)
    (root / "reports/.gitignore").write_text("/experiments/\n/sweeps/\n")
    (root / ".gitignore").open("a").write("/executed\n/hold-*\n/images/\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "work.py").write_text(WORK)
    (root / "data").mkdir()
    (root / "data/source").write_text("images\n")
    workspace = Workspace(root)
    workspace.set({"data.path": "data/source"})
    workspace.start_git()
    return workspace


def executed(workspace: Workspace) -> list[str]:
    """What stages have been executed since the last call, in any copy of the project."""
    log = workspace.root / "executed"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def looks(workspace: Workspace) -> dict[str, object]:
    """All that must not change in a workspace while an experiment is made of it."""
    git = ["status --porcelain", "stash list", "rev-parse HEAD", "branch --list"]
    files = ["params.yaml", "dvc.lock", "work.py", ".dvc/config", ".git/config"]
    contents = {name: (workspace.root / name) for name in files}
    return {
        **{command: workspace.run("git", *command.split()).stdout for command in git},
        **{name: file.read_bytes() for name, file in contents.items() if file.exists()},
        "data": workspace.digest("data"),
    }


def experiments(workspace: Workspace) -> dict[str, dict[str, object]]:
    """Metrics and parameters of the experiments that DVC shows, by name."""
    shown = json.loads(workspace.run("dvc", "exp", "show", "--json").stdout)
    found = [one for base in shown for one in base.get("experiments") or []]
    return {one["name"]: one["revs"][0]["data"] for one in found}
