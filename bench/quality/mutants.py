"""Plant mistakes one by one and run the tests: ``python -m bench.quality.mutants [TEXT ...]``.

Each mutant of ``bench/quality/mutants.toml`` is one wrong line: a flipped sign, a dropped detach,
a wrong level. It is planted in a copy of this tree, where the tests that concern its file run
until one fails. With TEXTs only those mutants run whose file, code or explanation contains one of
them. ``docs/results/mutants.md`` counts the mutants of each file all of whose mutants have run,
with the commit at which they did, and names those that survived; rows of other files stay.

Golden numbers are no test here: the code under test made them, and they are renewed on purpose.

The exit code is 1 if a mutant survives, if its original line is not found exactly once, or if the
tests fail without any mutant.
"""

import multiprocessing
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

# One thread, before anything imports torch; and only the plugins that the tests need.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

# What all tests import is imported once, before they are forked: four times faster.
import beartype.claw  # noqa: F401
import hypothesis.internal.conjecture.engine  # noqa: F401
import jaxtyping  # noqa: F401
import pandas  # noqa: F401
import psutil  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pydantic  # noqa: F401
import pytest
import ruamel.yaml  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import torch.testing  # noqa: F401
import torchvision  # noqa: F401

from sandbox import ROOT
from sandbox.workspace import copy_tracked

LIST = Path(__file__).with_suffix(".toml")
PAGE = ROOT / "docs" / "results" / "mutants.md"
FORK = multiprocessing.get_context("fork")
PLUGINS = ("_hypothesis_pytestplugin", "jaxtyping._pytest_plugin", "pytest_timeout")


class Mutant(NamedTuple):
    """A mistake, and the tests that should notice it."""

    file: str
    original: str
    mutated: str
    why: str
    tests: tuple[str, ...]


class Result(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    verdict: str
    """The test that killed it; or why it lives, in capitals."""

    seconds: float

    @property
    def killed(self) -> bool:
        """Whether a test failed, rather than Python or pytest."""
        return not self.verdict.isupper()


def declared() -> Iterator[Mutant]:
    """All mutants of the list."""
    for file, entry in tomllib.loads(LIST.read_text(encoding="utf-8")).items():
        tests = tuple(_file(name) for name in entry["tests"])
        assert not any("golden" in name for name in tests), f"{file}: golden numbers judge nothing"
        for original, mutated, why in entry["mutants"]:
            yield Mutant(file, original, mutated, why, tests)


def _file(test: str) -> str:
    """Path of a module of tests."""
    (file,) = (ROOT / "tests").rglob(f"{test}.py")
    return str(file.relative_to(ROOT))


def chosen(texts: Sequence[str]) -> list[Mutant]:
    """The mutants that mention one of the texts; all of them without texts."""
    return [
        mutant
        for mutant in declared()
        if not texts or any(text in part for text in texts for part in mutant[:4])
    ]


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of the tests in a process of their own, until one fails."""
    log = tree / "mutant.log"
    process = FORK.Process(target=_pytest, args=(tree, [*tests], log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log.read_text(encoding="utf-8", errors="replace")


def _pytest(tree: Path, tests: list[str], log: Path) -> None:
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    # Tests find the tree by this package, which was imported from the original one.
    for name in [name for name in sys.modules if name.partition(".")[0] == "sandbox"]:
        del sys.modules[name]
    # Workers that a test spawns would import this script with all that it imports.
    del sys.modules["__main__"].__file__
    # A mutant may be as long and as young as the original, which is all that Python compares.
    sys.dont_write_bytecode = True
    options = ["-x", "-m", "not slow", "--timeout=120", "-p", "no:cacheprovider"]
    for plugin in PLUGINS:
        options += ["-p", plugin]
    sys.exit(pytest.main([*options, *tests]))


def judge(tree: Path, mutant: Mutant) -> Result:
    """Plant a mutant, run its tests, and take it out again."""
    start = time.perf_counter()
    file = tree / mutant.file
    text = file.read_text(encoding="utf-8")
    found = text.count(mutant.original)
    if found != 1:
        return Result(mutant, f"FOUND {found} TIMES", 0.0)
    file.write_text(text.replace(mutant.original, mutant.mutated), encoding="utf-8")
    code, output = run_tests(tree, mutant.tests)
    file.write_text(text, encoding="utf-8")
    return Result(mutant, _verdict(code, output), time.perf_counter() - start)


def _verdict(code: int, output: str) -> str:
    if "Timeout (>" in output:
        return "TIMED OUT"  # which a busy machine does as well as a mistake
    # An error is a mistake that breaks what a fixture runs, such as all stages once.
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
    if code == pytest.ExitCode.TESTS_FAILED and failed:
        return failed[1]
    return "SURVIVED" if code == pytest.ExitCode.OK else f"BROKE PYTEST ({code})"


def page(before: str, results: Sequence[Result], commit: str) -> str:
    """The report as Markdown, a table of modules and one of survivors, with rows replaced.

    Args:
        before: The report so far; its rows of files that have no mutants any more are left out.
        results: All mutants of some files.
        commit: At which they ran.
    """
    counts, survivors = _rows(before, columns=5), _rows(before, columns=3)
    for file in {r.mutant.file: None for r in results}:
        own = [r for r in results if r.mutant.file == file]
        killed, seconds = sum(r.killed for r in own), sum(r.seconds for r in own)
        counts[file] = [f"| `{file}` | {len(own)} | {killed} | {seconds:.0f} | {commit} |"]
        survivors[file] = [
            f"| `{file}` | {r.mutant.why} | {r.verdict.lower()} |" for r in own if not r.killed
        ]
    files = [file for file in _listed() if file in counts]
    numbers = [[int(cell) for cell in counts[file][0].split("|")[2:4]] for file in files]
    planted, killed = (sum(column) for column in zip(*numbers, strict=True))
    lines = [
        "# Mutants",
        "",
        "Written by `python -m bench.quality.mutants`: one wrong line at a time, and whether a",
        "test fails. Each file has the commit at which all of its mutants last ran.",
        "",
        f"**{killed:,} of {planted:,} killed** ({killed / planted:.1%}).",
        "",
        "| module | mutants | killed | seconds | commit |",
        "|---|---|---|---|---|",
        *[counts[file][0] for file in files],
        "",
    ]
    lived = [row for file in files for row in survivors.get(file, [])]
    if lived:
        lines += ["| module | mistake that lives | verdict |", "|---|---|---|", *lived, ""]
    return "\n".join(lines)


def _rows(report: str, *, columns: int) -> dict[str, list[str]]:
    """TensorBatch by file of the report's table with this many columns."""
    rows: dict[str, list[str]] = {}
    for line in report.splitlines():
        if line.startswith("| `") and line.count("|") == columns + 1:
            rows.setdefault(line.split("`")[1], []).append(line)
    return rows


def _listed() -> Counter[str]:
    """How many mutants each file has."""
    return Counter(mutant.file for mutant in declared())


def main(texts: Sequence[str]) -> int:
    """Run the chosen mutants and report."""
    mutants, commit, results = chosen(texts), _commit(), []
    of_file, ran = _listed(), Counter(mutant.file for mutant in mutants)
    with TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        copy_tracked(tree)
        # Some tests ask git what it ignores.
        subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
        code, output = run_tests(tree, sorted({test for m in mutants for test in m.tests}))
        if code != pytest.ExitCode.OK:
            print(f"{output}\nthe tests fail without any mutant")
            return 1
        for file in ran:
            own = []
            for mutant in (m for m in mutants if m.file == file):
                result = judge(tree, mutant)
                own.append(result)
                line = f"{result.verdict:60.60} {result.seconds:5.0f} s {file}: {mutant.why}"
                print(line, flush=True)
            results += own
            if len(own) == of_file[file]:
                before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
                PAGE.write_text(page(before, own, commit), encoding="utf-8")
    killed = sum(result.killed for result in results)
    print(f"killed {killed} of {len(results)}")
    return 0 if killed == len(results) else 1


def _commit() -> str:
    """The commit of this tree; with a ``+`` where files have changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
