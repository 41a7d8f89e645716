"""dvc.yaml, params.yaml and the code say the same."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from functools import cache

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from pipeline.params.model import Params
from sandbox import ROOT

DECLARATION = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES = DECLARATION["stages"]
GRAPH = grimp.build_graph(
    "dsd", "pipeline", "flows", exclude_type_checking_imports=True, cache_dir=None
)


def source(module):
    path = ROOT / module.replace(".", "/")
    return str(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).relative_to(ROOT)
    )


@cache
def imported(stage):
    """The stage's module and all modules it imports."""
    module = f"pipeline.stages.{stage}"
    return {module} | GRAPH.find_upstream_modules(module)


def covers(declared, path):
    return path == declared or path.startswith(f"{declared}/")


def within(key, section):
    return key == section or key.startswith(f"{section}.")


def out_paths(stage):
    outs = [*STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])]
    assert all(isinstance(out, str) for out in outs), "options such as persist or cache: false"
    return outs


@cache
def params_read(stage):
    """Dotted keys that the stage's code takes from a ``Params``."""
    modules = [m for m in imported(stage) if m.startswith("pipeline.")]
    return {key for module in modules for key in params_read_in(ROOT / source(module))}


def params_read_in(path):
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if is_params(node) and isinstance(parents[node], ast.Attribute):
            yield from keys_of(parents[node], parents)


def is_params(node):
    name = getattr(node, "id", None) or getattr(node, "attr", "")
    return isinstance(node, ast.Name | ast.Attribute) and name.removeprefix("_") == "params"


def keys_of(node, parents):
    """The longest dotted key that starts with this attribute of a Params."""
    if node.attr == "model_dump":
        (include,) = [k.value for k in parents[node].keywords if k.arg == "include"]
        yield from ast.literal_eval(include)
        return
    model, names = Params, []
    while isinstance(node, ast.Attribute) and node.attr in getattr(model, "model_fields", {}):
        names.append(node.attr)
        model, node = model.model_fields[node.attr].annotation, parents[node]
    if isinstance(node, ast.Attribute) and isinstance(getattr(model, node.attr, None), property):
        for field in fields_behind(getattr(model, node.attr), model):
            yield ".".join([*names, field])
        return
    assert names, f"{node.attr} is no section of Params"
    yield ".".join(names)


def fields_behind(prop, model):
    """Fields that a property of a section reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(prop.fget)))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    fields = attributes & set(model.model_fields)
    assert fields, f"{prop} reads no field"
    return fields


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name_everywhere(stage):
    assert STAGES[stage]["cmd"] == f"exec sh pipeline/stage.sh {stage}"
    assert f"reports/{stage}" in out_paths(stage)
    pages = {"reports/summary.json", "reports/metrics.json", "reports/report.html"}
    others = pages if stage == "evaluate" else set()
    assert set(out_paths(stage)) <= {f"data/{stage}", f"reports/{stage}", *others}
    assert STAGES[stage]["desc"]
    assert not {d for d in STAGES[stage]["deps"] if d.startswith("reports")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_it_imports_and_on_no_other(stage):
    declared = {d for d in STAGES[stage]["deps"] if d.startswith(("dsd", "pipeline"))}
    needed = {source(module) for module in imported(stage)}
    missing = {path for path in needed if not any(covers(d, path) for d in declared)}
    assert not missing
    assert not {d for d in declared if not any(covers(d, path) for path in needed)}
    assert not {d for d in declared if not (ROOT / d).exists()}


def test_the_command_of_a_stage_looks_for_all_packages_that_stages_import():
    files = [file for part in ("dsd", "pipeline") for file in (ROOT / part).rglob("*.py")]
    files = [file for file in files if file.parent.name != "outputs"]  # its packages are extras
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    own = {"dsd", "pipeline", *sys.stdlib_module_names}
    script = (ROOT / "pipeline" / "stage.sh").read_text()
    listed = re.search(r'needed = """(.*?)"""', script, re.S)[1].split()
    assert {name.partition(".")[0] for name in names} - own == set(listed)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_weights_its_features_need(stage):
    if "dsd.features.extractor" in imported(stage):
        weights = "dsd/features/fashion-classifier.safetensors"
        assert any(covers(d, weights) for d in STAGES[stage]["deps"])


EDITS = {
    "dsd/__init__.py": [],  # a new public name
    "dsd/sources/formats/tiff.py": ["prepare"],  # another source
    "dsd/corruption/noise_level.py": ["corrupt"],
    "dsd/pretraining/denoising_loss.py": ["pretrain", "distill"],
    "dsd/distillation/losses.py": ["distill"],
    "dsd/features/custom.py": ["distill", "evaluate"],
    "dsd/evaluation/kid.py": ["evaluate"],
    "pipeline/__main__.py": [],
    "pipeline/execution/checkpoints.py": [],
    "pipeline/params/reader.py": [],
    "pipeline/reports/report.py": [],
    "pipeline/runtime/launch.py": [],
    "pipeline/stages/measures.py": ["evaluate"],
    "pipeline/tracking/tracker.py": [],
    "flows/definitions/train_flow.py": [],
}
"""What an edit of a file makes stale."""


@pytest.mark.parametrize("file", EDITS)
def test_an_edit_makes_only_stages_stale_whose_result_it_can_change(file):
    assert (ROOT / file).exists()
    stale = [stage for stage in STAGES if any(covers(dep, file) for dep in STAGES[stage]["deps"])]
    assert stale == EDITS[file]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_parameters_it_reads_and_no_other(stage):
    """Those of the section ``run`` decide no result, and must make nothing stale."""
    declared = STAGES[stage]["params"]
    read = {key for key in params_read(stage) if not within(key, "run")}
    assert read, "the test found no parameter that the stage reads"
    assert not {key for key in read if not any(within(key, one) for one in declared)}
    assert not {one for one in declared if not any(within(key, one) for key in read)}
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    for one in declared:
        section = values
        for name in one.split("."):
            section = section[name]


def artifacts_named(stage):
    """Folders below data/ that a stage's code names, to read or to write."""
    code = (ROOT / "pipeline" / "stages" / f"{stage}.py").read_text()
    return set(re.findall(r"(?:artifact\(|open_images\([\w.]*paths,)\s*['\"](\w+)", code))


def test_training_never_sees_a_clean_image():
    for stage in ("pretrain", "distill"):
        data = {d for d in STAGES[stage]["deps"] if d.startswith(("data", "$"))}
        assert data <= {"data/corrupt", "data/pretrain"}
        assert "prepare" not in artifacts_named(stage)


def test_a_stage_reads_only_artifacts_it_depends_on():
    for stage in STAGES:
        artifacts = artifacts_named(stage)
        assert artifacts, stage
        inputs = {d.removeprefix("data/") for d in STAGES[stage]["deps"] if d.startswith("data/")}
        assert artifacts - {stage} == inputs - {stage}, stage


def test_plots_and_artifacts_lie_in_outputs():
    outs = [out for stage in STAGES for out in out_paths(stage)]
    files = [DECLARATION["artifacts"]["generator"]["path"]]
    for plot in DECLARATION["plots"]:
        if isinstance(plot, str):
            files.append(plot)
        else:
            files += [file for spec in plot.values() for file in spec["y"]]
    assert not [f for f in files if not any(covers(out, f) for out in outs)]


def test_what_a_run_leaves_is_ignored_by_git():
    paths = [out for stage in STAGES for out in out_paths(stage)]
    paths += ["mlflow.db", "mlartifacts/x", ".dsd/state/x", ".prefect/prefect.db", ".dvc/cache/x"]
    command = ["git", "check-ignore", *paths]
    ignored = subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout.split()
    assert set(paths) == set(ignored)


def test_the_lock_file_has_names_and_versions_only_and_satisfies_the_project():

    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    pattern = re.compile(
        r"[\w.-]+==[\w.]+( ; sys_platform == '\w+' and platform_machine == '\w+')?"
    )
    assert not [line for line in pins if not pattern.fullmatch(line)]
    versions = {canonicalize_name(r.name): str(r.specifier)[2:] for r in map(Requirement, pins)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    extras = project["project"]["optional-dependencies"]
    extra = [*extras["features"], *extras["formats"]]
    wanted = [*project["project"]["dependencies"], *extra, *groups["pipeline"], *groups["dev"]]
    for requirement in map(Requirement, wanted):
        pinned = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} but {pinned} is locked"
