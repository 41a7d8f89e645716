"""The page of a training that runs: its curves and latest pictures, without a network."""

import os
import re
import socket
import threading

import numpy as np
import pytest
from PIL import Image
from stage_helpers import Recorder

from dsd.utils.files import write_json
from pipeline.reports import watch as watching
from pipeline.reports.watch import watch, write_watch_page
from pipeline.runtime.live import LiveLog
from pipeline.runtime.progress import Speaker
from pipeline.stage_io.paths import Paths
from pipeline.stage_io.tables import write_csv


@pytest.fixture
def paths(tmp_path):
    """A workspace whose teacher is trained."""
    paths = Paths(tmp_path)
    write_csv(paths.report("pretrain") / "loss.csv", ["images", "loss"], [(100, 1.5), (200, 0.9)])
    draw(paths.report("pretrain") / "samples" / "000000200.png")
    return paths


def draw(file, grey=200):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(file)


@pytest.fixture
def distilling(paths):
    """The log of a distillation at work."""
    speaker = Speaker()
    speaker.begin("training")
    speaker.moved(3_000, 4_000, 80.0)
    speaker.later_seconds = 100.0
    with LiveLog("distill", paths, Recorder(), speaker) as log:
        log.trains("abc")
        log.metrics(0, {"proximal_frechet": 2.5})
        log.metrics(2_000, {"proximal_frechet": 1.25, "gap": 0.5})
        for seen in (0, 2_000):
            draw(paths.state("distill") / "abc" / "pictures" / f"{seen:09d}.png")
        yield log


def page_of(paths):
    write_watch_page(paths)
    return paths.watch_page.read_text()


def test_the_page_shows_what_a_training_does_and_has_done(paths, distilling):
    distilling.write()
    page = page_of(paths)
    assert "<title>75% distill</title>" in page
    for text in (
        "distill, stage 4 of 5",
        "3,000 of 4,000 images",
        "1 min 20 s left",
        "3 min with later stages",
        "Proximal Frechet distance: 1.25 after 2,000 images",
        "gap: 0.5 after 2,000 images",
        "loss: 0.9 after 200 images",
        "One-step samples: After 2,000 images",
        "Samples of the teacher: After 200 images",
    ):
        assert text in page, text
    # What is new stands above what is old.
    assert page.index("One-step samples") < page.index("Loss of the teacher")


def test_the_page_reloads_itself_and_asks_no_network(paths, distilling):
    distilling.write()
    page = page_of(paths)
    assert '<meta http-equiv="refresh" content="5">' in page
    # Addresses are those of SVG's names, or data inside of the page.
    wanted = re.findall(r'(?:src|href)="([^"#]*)', page)
    assert {address.partition(":")[0] for address in wanted if address} == {"data"}
    assert "<script" not in page


def test_the_note_goes_when_the_stage_ends(paths):
    with LiveLog("distill", paths, Recorder(), Speaker()) as log:
        log.write()
        assert [*paths.live.glob("*.json")]
    assert not [*paths.live.glob("*.json")]
    log.write()  # the thread may be a moment late
    assert not [*paths.live.glob("*.json")]
    assert "Nothing runs now" in page_of(paths)


def test_the_note_of_a_killed_process_is_not_shown(paths, distilling):
    distilling.write()
    (note,) = paths.live.glob("*.json")
    dead = 2**22 + 1  # above the largest process number of Linux
    note.rename(note.with_name(f"{socket.gethostname()}-{dead}.json"))
    text = (paths.live / f"{socket.gethostname()}-{dead}.json").read_text()
    (paths.live / f"{socket.gethostname()}-{dead}.json").write_text(
        text.replace(f'"pid": {os.getpid()}', f'"pid": {dead}')
    )
    assert "Nothing runs now" in page_of(paths)


def test_experiments_at_work_have_a_section_each(paths, distilling):
    distilling.write()
    other = paths.root / ".dvc" / "tmp" / "exps" / "flows" / "low"
    note = {"stage": "pretrain", "root": str(other), "experiment": "low", "pid": os.getpid()}
    note |= {"host": "there", "at": 4e9, "doing": "training", "images": 5, "total_images": 10}
    note |= {"seconds_left": None, "later_seconds": None, "state": None, "curves": {}}
    write_json(paths.live / "elsewhere-1.json", note)
    page = page_of(paths)
    assert "low: pretrain, stage 3 of 5" in page
    assert "75% distill" in page


def test_the_command_rewrites_the_page_until_it_is_stopped(paths, distilling, monkeypatch, capsys):
    pages = []

    def wait(seconds):
        pages.append(paths.watch_page.read_text())
        if len(pages) == 2:
            raise KeyboardInterrupt
        distilling.write()

    monkeypatch.setattr(watching.time, "sleep", wait)
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    watch(paths)
    assert "Nothing runs now" in pages[0]
    assert "distill, stage 4 of 5" in pages[1]
    assert "Page: reports/watch.html" in capsys.readouterr().out


def test_notes_are_written_by_one_thread_while_another_one_adds_numbers(paths):
    """No number is lost and no error raised, whatever the order."""
    ticks = iter(range(0, 10**6, 3))
    with LiveLog("distill", paths, Recorder(), Speaker(), lambda: next(ticks)) as log:
        writer = threading.Thread(target=lambda: [log.write() for _ in range(50)])
        writer.start()
        for images in range(500):
            log.metrics(images, {"gap": float(images)})
        writer.join()
        log.write()
        assert "gap: 499 after 499 images" in page_of(paths)
