"""A piece of work that fails, dies or hangs costs no other one's figures."""

import os
import time

from bench.gpu.worker import Worker


def counted():
    counted.calls = getattr(counted, "calls", 0) + 1
    return {"calls": counted.calls}


def dies():
    os._exit(3)


def hangs():
    time.sleep(60)
    return {}


def fails():
    msg = "CUDA out of memory\nand more"
    raise RuntimeError(msg)


def test_work_that_fails_dies_or_hangs_costs_no_other_figures():
    worker = Worker()
    try:
        assert worker.do(counted, seconds=60) == {"calls": 1}
        assert worker.do(fails, seconds=60) == {"problem": "RuntimeError: CUDA out of memory"}
        assert worker.do(counted, seconds=60) == {"calls": 2}
        assert worker.do(dies, seconds=60) == {"problem": "its process ended with code 3"}
        assert worker.do(counted, seconds=60) == {"calls": 1}
        assert worker.do(hangs, seconds=0.2) == {"problem": "it took longer than 0 s"}
        assert worker.do(counted, seconds=60) == {"calls": 1}
    finally:
        worker.end()
