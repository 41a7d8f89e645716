"""The package as a notebook sees it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsd


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
