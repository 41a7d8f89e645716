"""Processes that run side by side until they are stopped: servers, workers and the like.

Each has its own process group and log file. One that dies is started again, because a worker or a
server that is back goes on where it was; one that keeps dying ends all, because then something is
wrong that no restart cures. None outlives the supervisor, not even its SIGKILL.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from dsd.utils.errors import DsdError
from flows.runtime.stopping import signal_group
from pipeline.runtime.parent_death import tether

__all__ = ["Service", "ServiceError", "Supervisor"]

_QUICK_EXIT_S = 20.0
_MAX_QUICK_EXITS = 3
_TAIL_LINES = 15


class ServiceError(DsdError):
    """A service cannot be started or kept alive; the message says why and what to do."""


@final
@dataclass(frozen=True)
class Service:
    """A command that is to run while its supervisor does."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables on top of the supervisor's own."""
    grace_s: float = 10.0
    """Seconds between SIGTERM and SIGKILL when it is to end."""


@final
@dataclass
class _Running:
    service: Service
    log: Path
    process: "subprocess.Popen[bytes]"
    started: float
    quick_exits: int = 0
    restart_at: float | None = None


@final
@dataclass
class Supervisor:
    """Starts services, keeps them alive, and stops them.

    Args:
        folder: Working folder of the services.
        logs: Folder of the log files, one for each service.
        say: Called with each line for the user.
    """

    folder: Path
    logs: Path
    say: Callable[[str], None]
    _running: list[_Running] = field(default_factory=list)

    def start(self, service: Service) -> None:
        """Start a service; its log begins empty."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{service.name}.log"
        log.write_bytes(b"")
        process = self._launch(service, log)
        self._running.append(_Running(service, log, process, time.monotonic()))

    def poll(self) -> None:
        """Start those again that have died; to be called every second or so.

        Raises:
            ServiceError: One has died several times in a row soon after its start.
        """
        now = time.monotonic()
        for running in self._running:
            if running.restart_at is not None:
                if now >= running.restart_at:
                    running.process = self._launch(running.service, running.log)
                    running.started, running.restart_at = now, None
            elif running.process.poll() is not None:
                self._plan_restart(running, now)

    def stop(self) -> None:
        """End all services; SIGKILL for those that do not end in their time of grace."""
        start, stopping = time.monotonic(), self._running
        self._running = []
        for running in stopping:
            signal_group(running.process, signal.SIGTERM)
        for running in stopping:
            left = start + running.service.grace_s - time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(max(left, 0.0))
            signal_group(running.process, signal.SIGKILL)
            running.process.wait()

    def tail(self, name: str) -> str:
        """The last lines of a service's log."""
        text = (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.rstrip().splitlines()[-_TAIL_LINES:])

    def _launch(self, service: Service, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("ab") as stream:
            return subprocess.Popen(
                tether(service.command),
                cwd=self.folder,
                env={**os.environ, **service.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _plan_restart(self, running: _Running, now: float) -> None:
        service, code = running.service, running.process.returncode
        # What a dead leader leaves of its group would hold its port.
        signal_group(running.process, signal.SIGTERM)
        lived = now - running.started
        running.quick_exits = running.quick_exits + 1 if lived < _QUICK_EXIT_S else 0
        if running.quick_exits >= _MAX_QUICK_EXITS:
            msg = (
                f"{service.name} ended {running.quick_exits} times within {_QUICK_EXIT_S:.0f} s "
                f"of its start, last with code {code}; its log {running.log} ends with\n"
                f"{self.tail(service.name)}"
            )
            raise ServiceError(msg)
        self.say(f"{service.name} ended with code {code}; starting it again (log: {running.log})")
        running.restart_at = now + 2.0 ** (running.quick_exits - 1)
