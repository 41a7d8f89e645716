"""Kill a flow and look at what remains: ``python -m bench.reliability.kill_matrix [CASE ...]``.

A tiny pipeline of this project's own flows runs on a real Prefect server with a real worker. Each
case stops or kills something while the second stage works, and looks how long its process lives
on, how the run is shown, what is left, and how the next run goes. A full run writes the table
``docs/results/scheduling/kill_matrix.md``; about 10 minutes.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.common import RESULTS, markdown
from sandbox.ports import free_port
from sandbox.tiny_project import PATTERNS, Project, lives, until

PAGE = RESULTS / "scheduling" / "kill_matrix.md"
HEAD = ("what happens", "stage's process gone after", "the run is", "left behind", "next run")
ENDED = ("Completed", "Crashed", "Cancelled", "Failed")
STAGE_SECONDS = 12.0
OUTAGE_S = 60.0


class Row(NamedTuple):
    """What was seen of one case."""

    case: str
    freed: str
    shown: str
    left: str
    again: str


class Matrix:
    """A project with its services, and what the cases do to them."""

    def __init__(self, root: Path) -> None:
        self.project = Project(root, free_port())
        self.project.make()
        self.services = self.project.start_services()
        self.seed = 0

    def measure(self, case: str, act: Callable[[str], None]) -> Row:
        """Run, act in the middle of the second stage, and look."""
        self.seed += 1
        late = act == self.cancel_after_outage
        self.project.choose(seed=self.seed, seconds=STAGE_SECONDS + (OUTAGE_S + 60 if late else 0))
        run = self.project.submit()
        self.project.wait_until_second_works(run)
        if late:
            self.server_away(run)
        stage, start = self.processes("stage"), time.monotonic()
        with ThreadPoolExecutor() as watching:
            freed = watching.submit(until, lambda: not any(map(lives, stage)), 60, "the end")
            act(run)
            shown = self.project.wait_for(run, *ENDED, seconds=240)
            shown += f" after {time.monotonic() - start:.0f} s"
        gone = "not meant to" if act == self.server_away else f"{freed.result():.1f} s"
        return Row(case, gone, shown, self._left(), self._again(run))

    def close(self) -> None:
        """End everything."""
        self.services.terminate()
        self.services.wait(60)

    def _left(self) -> str:
        """Orphans, and what still says that somebody works, some seconds after the run's end."""
        time.sleep(5)
        found = [kind for kind in ("stage", "dvc", "engine") if self.processes(kind)]
        rwlock = self.project.root / ".dvc" / "tmp" / "rwlock"
        if rwlock.is_file() and json.loads(rwlock.read_text() or "{}").get("write"):
            found.append("DVC's entry of a dead process")
        records = self.project.root / ".dsd" / "flow_runs"
        found += ["record of the run" for _ in records.iterdir()]
        return ", ".join(found) or "nothing"

    def _again(self, run: str) -> str:
        """How the next run ends, and from where its second stage went on."""
        following = self.project.submit()
        ended = self.project.wait_for(following, *ENDED, seconds=240)
        until(lambda: "Finished in state" in self.project.log(following), 30, "the last log line")
        starts = self._starts(following)
        if starts:
            return f"{ended}; went on from {starts[-1]}"
        own = self._starts(run)
        place = f" from {own[-1]}" if len(own) > 1 else ""
        return f"{ended}; nothing to do, for the run itself went on{place}"

    def _starts(self, run: str) -> list[str]:
        """From where the second stage went on, each time that the run started it."""
        found = re.findall(r"^second goes on from (\d+)$", self.project.log(run), re.M)
        return [f"{int(tenths) / 10:.1f} s" for tenths in found]

    def processes(self, kind: str) -> list[psutil.Process]:
        """Living processes of a kind."""
        return self.project.processes(PATTERNS[kind])

    def kill(self, what: str, number: int = signal.SIGKILL) -> Callable[[str], None]:
        """An act: signal one kind of process."""
        return lambda _run: self.project.kill(PATTERNS[what], number)

    def server_away(self, _run: str) -> None:
        """Kill Prefect's server and keep it from being started again for a while."""
        self.services.send_signal(signal.SIGSTOP)
        self.project.kill(PATTERNS["server"])
        time.sleep(OUTAGE_S)
        self.services.send_signal(signal.SIGCONT)

    def cancel_after_outage(self, run: str) -> None:
        """Cancel when the worker may have given up asking whether to; make the rest short."""
        self.project.cancel(run)
        self.project.wait_for(run, *ENDED, seconds=120)
        self.project.set_seconds(STAGE_SECONDS)

    def reboot(self, _run: str) -> None:
        """Kill everything at once, then start the services again."""
        self.project.kill(PATTERNS["all"])
        self.services.wait()
        self.services = self.project.start_services()

    def services_killed(self, _run: str) -> None:
        """Kill the supervisor alone; what it started must go. Then start it again."""
        self.services.kill()
        self.services.wait()
        until(lambda: not self.processes("all"), 60, "the end of all")
        self.services = self.project.start_services()

    def services_stopped(self, _run: str) -> None:
        """Ctrl-C, then start again."""
        self.services.send_signal(signal.SIGINT)
        self.services.wait(60)
        left = self.processes("all")
        assert not left, left
        self.services = self.project.start_services()

    def by_hand(self) -> Row:
        """A hand-run ``dvc repro`` works while a run starts: the run waits and says for whom."""
        self.seed += 1
        self.project.choose(seed=self.seed, seconds=3 * STAGE_SECONDS)
        command = [sys.executable, "-m", "dvc", "repro"]
        root, env = self.project.root, self.project.env
        hand = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL)
        until(lambda: self.processes("stage"), 60, "the stage by hand")
        run = self.project.submit()
        shown = self.project.wait_for(run, *ENDED, seconds=240)
        hand.wait()
        waits = [line for line in self.project.log(run).splitlines() if "is used by" in line]
        said = waits[0].replace(str(hand.pid), "N") if waits else "nothing"
        return Row("`dvc repro` by hand meanwhile", "-", shown, self._left(), f"it said: {said}")


def main(wanted: Sequence[str]) -> int:
    """Measure all cases, or those whose names contain one of the texts."""
    with tempfile.TemporaryDirectory(prefix="kill-matrix-") as folder:
        matrix = Matrix(Path(folder) / "project")
        acts: dict[str, Callable[[str], None]] = {
            "cancel in the UI": matrix.project.cancel,
            "SIGKILL of the stage": matrix.kill("stage"),
            "SIGKILL of dvc": matrix.kill("dvc"),
            "SIGKILL of the engine": matrix.kill("engine"),
            "SIGTERM of the engine": matrix.kill("engine", signal.SIGTERM),
            "SIGKILL of the worker": matrix.kill("worker"),
            "SIGTERM of the worker": matrix.kill("worker", signal.SIGTERM),
            "SIGKILL of the server, 60 s away": matrix.server_away,
            "cancel when the server is back": matrix.cancel_after_outage,
            "SIGKILL of `make up`": matrix.services_killed,
            "Ctrl-C of `make up`": matrix.services_stopped,
            "SIGKILL of everything (reboot)": matrix.reboot,
        }
        rows = []
        try:
            for case, act in acts.items():
                if not wanted or any(text in case for text in wanted):
                    rows.append(matrix.measure(case, act))
                    print(*rows[-1], sep=" | ", flush=True)
            if not wanted or "hand" in wanted:
                rows.append(matrix.by_hand())
                print(*rows[-1], sep=" | ", flush=True)
        finally:
            matrix.close()
    if not wanted:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(markdown(HEAD, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
