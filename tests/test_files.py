"""Files that are complete or absent, and that land nowhere else."""

import errno
import json
import os

import pytest
import torch
from faults import Boundaries

from dsd.errors import DataError
from dsd.files import published, read_json, write_json
from dsd.images import save_grid, save_rows
from pipeline.tables import read_csv, write_csv

IMAGES = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
WRITERS = {
    "table.csv": lambda path, n: write_csv(path, ["number"], [[n]] * 3),
    "grid.png": lambda path, n: save_grid(IMAGES + n, path, columns=2),
    "rows.png": lambda path, n: save_rows({"images": IMAGES + n}, path),
    "document.json": lambda path, n: write_json(path, {"number": n}),
}


@pytest.fixture(params=WRITERS)
def writer(request, tmp_path):
    """A file of the folder ``made``, and what writes a number into it."""
    return tmp_path / "made" / request.param, WRITERS[request.param]


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_link_that_somebody_planted_is_not_followed(writer, tmp_path):
    path, write = writer
    canary = tmp_path / "canary"
    canary.write_text("alive")
    path.parent.mkdir()
    for name in (path.name, f"{path.name}.part"):
        for plant in (os.symlink, os.link):
            (path.parent / name).unlink(missing_ok=True)
            plant(canary, path.parent / name)
            write(path, 1)
            assert canary.read_text() == "alive"
            assert canary.stat().st_nlink == 1
            assert not path.is_symlink()
            assert list(content_of(path.parent)) == [path.name]


def test_a_file_is_the_old_or_the_new_one_wherever_its_writer_dies(writer):
    path, write = writer
    write(path, 2)
    new = path.read_bytes()
    write(path, 1)
    old = path.read_bytes()
    with Boundaries(lambda: None, below=path.parent).watched() as seen:
        write(path, 1)
    found = []
    for number in range(1, len(seen.names) + 1):
        write(path, 1)
        child = os.fork()
        if child == 0:
            with Boundaries(lambda: os._exit(9), number, path.parent).watched():
                write(path, 2)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found.append([old, new].index(path.read_bytes()))
    assert found == sorted(found)
    assert {*found} == {0, 1}
    write(path, 2)
    assert content_of(path.parent) == {path.name: new}


def test_a_full_disk_leaves_the_old_file_and_nothing_besides(writer):
    path, write = writer
    write(path, 1)
    before = content_of(path.parent)

    def refuse():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Boundaries(lambda: None, below=path.parent).watched() as seen:
        write(path, 1)
    for number, name in enumerate(seen.names, 1):
        if name == "write":
            with (
                pytest.raises(OSError, match="No space left"),
                Boundaries(refuse, number, path.parent).watched(),
            ):
                write(path, 2)
            assert content_of(path.parent) == before


def test_an_error_in_the_middle_of_a_table_leaves_the_old_one(tmp_path):
    write_csv(tmp_path / "table.csv", ["a"], [[1]])
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "table.csv", ["a"], ([1 // (2 - n)] for n in range(4)))
    assert read_csv(tmp_path / "table.csv") == [{"a": "1"}]
    with pytest.raises(ZeroDivisionError), published(tmp_path / "other") as file:
        file.write(b"1" * (1 // 0))
    assert list(content_of(tmp_path)) == ["table.csv"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 200_000, b'{"a": 1}}'])
def test_what_is_no_json_is_refused_by_name(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json is no JSON .*run `dvc repro`"):
        read_json(tmp_path / "x.json")
    write_json(tmp_path / "x.json", {"a": [1.5, None, "ä"]})
    assert read_json(tmp_path / "x.json") == {"a": [1.5, None, "ä"]}
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.5, None, "ä"]}
