"""Progress as people see it: a bar on a terminal, plain lines in a log."""

import io

import pytest

from pipeline.runtime.progress import Bar, Lines, make_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make_lines(total=128_000):
    stream, clock = io.StringIO(), Clock()
    return Lines("distill", total, stream, clock), stream, clock


def test_the_display_suits_the_stream():
    assert isinstance(make_progress("distill", 10, io.StringIO()), Lines)
    assert isinstance(make_progress("distill", 10, Terminal()), Bar)


def test_a_line_says_share_images_rate_time_left_and_values():
    lines, stream, clock = make_lines()
    lines.update(0)
    clock.now += 87.5
    lines.update(44_800, proximal_frechet=5.3141)
    assert stream.getvalue() == (
        "distill 35% 44,800/128,000 images, 512 img/s, 2:42 left, proximal_frechet 5.31\n"
    )


def test_lines_come_at_most_every_four_seconds_and_once_more_at_the_end():
    lines, stream, clock = make_lines(total=1000)
    with lines:
        for images in range(10, 1001, 10):
            lines.update(images)
            clock.now += 0.5
    text = stream.getvalue()
    assert len(text.splitlines()) == 13
    assert text.splitlines()[-1].startswith("distill 100% 1,000/1,000 images")
    assert "\r" not in text


def test_the_rate_of_a_resumed_stage_counts_only_what_this_process_did():
    lines, stream, clock = make_lines(total=10_000)
    lines.update(5_000)
    clock.now += 10
    lines.update(6_000)
    assert "100 img/s, 0:40 left" in stream.getvalue()


def test_a_stage_that_never_updates_prints_nothing():
    lines, stream, _ = make_lines()
    with lines:
        pass
    assert stream.getvalue() == ""


def test_the_last_line_appears_even_if_the_stage_fails():
    lines, stream, clock = make_lines(total=100)

    def fail():
        with lines:
            lines.update(10)
            clock.now += 1
            lines.update(50)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stream.getvalue().startswith("distill 50% 50/100 images")


def test_the_bar_shows_images_and_values_and_starts_where_a_resumed_run_does():
    stream = Terminal()
    with make_progress("pretrain", 1_000, stream) as bar:
        bar.update(600, loss=0.25)
        bar.update(1_000)
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith("pretrain 100%")
    assert "1,000/1,000 images" in last
    assert "loss 0.25" in last
    assert " 60%" in stream.getvalue()
