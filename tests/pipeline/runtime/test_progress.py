"""Progress as people see it: a bar on a terminal, plain lines in a log."""

import io
import threading
import time

import pytest

from pipeline.runtime import progress
from pipeline.runtime.progress import Bar, Lines, Speaker, make_progress, readable


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
        "distill 35% 44,800/128,000 images, 512 img/s, 2 min 42 s left, proximal_frechet 5.31\n"
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
    assert "100 img/s, 40 s left" in stream.getvalue()


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


def test_the_time_of_later_stages_is_added_to_what_is_left(monkeypatch):
    monkeypatch.setattr(progress.speaker, "later_seconds", 3600.0)
    lines, stream, clock = make_lines(total=10_000)
    lines.update(0)
    clock.now += 10
    lines.update(5_000)
    assert "500 img/s, 10 s left, 1 h with later stages" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (80, "1 min 20 s"),
        (754, "12 min"),
        (7500, "2 h 5 min"),
        (277_200, "3 d 5 h"),
    ],
)
def test_times_are_as_people_say_them(seconds, text):
    assert readable(seconds) == text


def speak(capsys, clock, speaker, seconds):
    """What a speaker prints within some seconds."""
    for _ in range(seconds):
        clock.now += 1
        speaker.break_silence()
    return capsys.readouterr().err.splitlines()


def test_silence_is_broken_before_five_seconds_with_what_is_done_and_since_when(capsys):
    clock = Clock()
    speaker = Speaker(clock=clock)
    speaker.begin("measuring copies")
    assert speak(capsys, clock, speaker, 4) == []
    assert speak(capsys, clock, speaker, 1) == [": measuring copies, 5 s so far"]
    assert len(speak(capsys, clock, speaker, 20)) == 4
    clock.now += 60
    assert speak(capsys, clock, speaker, 1) == [": measuring copies, 1 min 26 s so far"]


def test_whoever_prints_is_heard(capsys, monkeypatch):
    clock = Clock()
    speaker = Speaker(clock=clock)
    monkeypatch.setattr(progress, "speaker", speaker)
    for _ in range(3):
        clock.now += 3
        progress.say("a result")
        speaker.break_silence()
    assert capsys.readouterr().err == ""


def test_a_bar_says_in_its_own_line_what_is_done(capsys, monkeypatch):
    clock, stream = Clock(), Terminal()
    speaker = Speaker(clock=clock)
    monkeypatch.setattr(progress, "speaker", speaker)
    with make_progress("evaluate", 100, stream) as bar:
        bar.update(10)
        speaker.begin("measuring copies")
        assert speak(capsys, clock, speaker, 6) == []
    assert stream.getvalue().split("\r")[-2].endswith("measuring copies, 5 s so far")
    assert speaker.bar is None


def test_a_speaker_speaks_and_calls_until_it_is_stopped(capsys):
    speaker, called = Speaker(seconds=0.02), threading.Event()
    speaker.each = called.set
    speaker.start("check")
    assert called.wait(20)
    while "check: starting" not in (said := capsys.readouterr().err):
        time.sleep(0.01)
    speaker.stop()
    capsys.readouterr()
    time.sleep(0.1)
    assert said
    assert capsys.readouterr().err == ""
