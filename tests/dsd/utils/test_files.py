"""Files that are complete or absent, and that land nowhere else."""

import errno
import json
import os
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from dsd.utils import files
from dsd.utils.errors import DataError
from dsd.utils.files import published, read_json, replaced, write_json
from dsd.utils.images import save_grid, save_rows
from pipeline.stage_io.tables import read_csv, write_csv
from sandbox.faults import Boundaries

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


def fill(folder, content, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def test_a_folder_is_replaced_as_a_whole_and_links_into_a_cache_keep_their_content(tmp_path):
    cache, made = tmp_path / "cache", tmp_path / "made"
    made.mkdir()
    for number, link in enumerate((os.link, os.symlink)):
        fill(tmp_path, "cached", f"cache/{number}")
        link(cache / f"{number}", made / f"linked-{number}")
        (cache / f"{number}").chmod(0o444)
    fill(made, "old", "stale", "sub/stale")
    with replaced(made) as fresh:
        assert list(fresh.iterdir()) == []
        fill(fresh, "new", "linked-0", "linked-1")
        assert (made / "stale").exists(), "the old one is there until the end"
    assert content_of(made) == {"linked-0": b"new", "linked-1": b"new"}
    assert content_of(cache) == {"0": b"cached", "1": b"cached"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "made"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_a_link_to_another_disk_stays_one(exists, tmp_path):
    disk, made = tmp_path / "disk" / "made", tmp_path / "made"
    disk.parent.mkdir()
    if exists:
        fill(disk.parent, "old", "made/stale")
    made.symlink_to(disk)
    with replaced(made) as fresh:
        assert fresh.parent == disk.parent
        fill(fresh, "new", "file")
    assert made.readlink() == disk
    assert content_of(disk) == {"file": b"new"}
    assert list(disk.parent.iterdir()) == [disk]


def test_an_error_while_a_folder_is_made_leaves_the_old_one(tmp_path):
    fill(tmp_path, "old", "made/file")
    with pytest.raises(ZeroDivisionError), replaced(tmp_path / "made") as fresh:
        fill(fresh, "new" * (1 // 0), "file")
    assert content_of(tmp_path / "made") == {"file": b"old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def make(folder, content):
    with replaced(folder) as fresh:
        for name in ("a", "b"):
            with published(fresh / name) as file:
                file.write(content)


def test_a_folder_is_never_mixed_wherever_its_writer_dies_or_the_disk_refuses(tmp_path):
    made = tmp_path / "made"
    make(made, b"1")
    with Boundaries(lambda: None, below=tmp_path).watched() as seen:
        make(made, b"1")
    old, new = (dict.fromkeys(("a", "b"), content) for content in (b"1", b"2"))
    for number in range(1, len(seen.names) + 1):
        make(made, b"1")
        child = os.fork()
        if child == 0:
            with Boundaries(lambda: os._exit(9), number, tmp_path).watched():
                make(made, b"2")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        found = content_of(made) if made.exists() else None
        assert found in (old, new, None)
        with pytest.raises(ZeroDivisionError), replaced(made):
            _ = 1 // 0
        # Of a process that was killed between two renamings, the old one is brought back.
        assert content_of(made) == (found or old)
        assert list(tmp_path.iterdir()) == [made]

    def refuse():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for number in range(1, len(seen.names) + 1):
        make(made, b"1")
        with suppress(OSError), Boundaries(refuse, number, tmp_path).watched():
            make(made, b"2")
        assert content_of(made) in (old, new)


@pytest.mark.parametrize("locked", [".", "made/sub"])
def test_a_folder_that_this_user_may_not_replace_is_refused_before_the_work(locked, tmp_path):
    fill(tmp_path, "old", "made/file", "made/sub/file")
    (tmp_path / locked).chmod(0o555)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            for folder in (*tmp_path.parents, tmp_path / "made"):
                folder.chmod(folder.stat().st_mode | 0o005)
            os.setuid(65534)
        with suppress(PermissionError), replaced(tmp_path / "made"):
            os._exit(1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (tmp_path / locked).chmod(0o755)
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_synced_is_told_once_and_stops_nothing(
    number, tmp_path, monkeypatch, caplog
):
    sync = os.fsync

    def refuse(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    files._say_that_folders_are_not_synced.cache_clear()
    monkeypatch.setattr(os, "fsync", refuse)
    stops = number == errno.EIO
    for value in (1, 2):
        with pytest.raises(OSError, match="Input/output") if stops else nullcontext():
            write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == 2
    assert [record.getMessage() for record in caplog.records] == (
        []
        if stops
        else [
            f"warning: this file system cannot sync folders ({os.strerror(number)}), so that a "
            "power failure may undo what was written last; everything else is as usual"
        ]
    )
