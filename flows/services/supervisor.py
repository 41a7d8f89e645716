"""Processes that run side by side until they are stopped: servers, workers and the like.

Each has a process group and a log file of its own. One that dies is started again, because a
worker or a server that is back goes on where it was; one that keeps dying ends all, because then
something is wrong that no restart cures. None outlives the supervisor, not even its SIGKILL.
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
from pipeline.runtime.parent_death import tether

__all__ = ["Service", "ServiceError", "Supervisor"]

_SHORT_LIFE_S = 20.0
_MAX_SHORT_LIVES = 3
_TAIL_LINES = 15


class ServiceError(DsdError):
    """A service cannot be started or kept alive; the message says why and what to do."""


@final
@dataclass(frozen=True)
class Service:
    """A command that is to run for as long as its supervisor.

    Args:
        name: For people, and of the log file.
        command: Program and arguments.
        environment: Variables on top of the supervisor's own.
        grace_s: Seconds between SIGTERM and SIGKILL when it is to end.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 10.0


@final
@dataclass
class _Running:
    service: Service
    log: Path
    process: "subprocess.Popen[bytes]"
    started: float
    short_lives: int = 0
    restart_at: float | None = None


@final
@dataclass
class Supervisor:
    """Starts services, keeps them alive, and stops them.

    Args:
        folder: Working folder of the services.
        logs: Folder of the log files, one for each service, begun anew by each supervisor.
        say: Called with each line for the user.
    """

    folder: Path
    logs: Path
    say: Callable[[str], None]
    _running: list[_Running] = field(default_factory=list)

    def start(self, service: Service) -> None:
        """Start a service."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{service.name}.log"
        log.write_bytes(b"")
        process = self._launch(service, log)
        self._running.append(_Running(service, log, process, time.monotonic()))

    def look_after(self) -> None:
        """Start those again that have died; to be called every second or so.

        Raises:
            ServiceError: One has died several times in a row soon after its start.
        """
        now = time.monotonic()
        for running in self._running:
            if running.restart_at is not None:
                self._restart_when_due(running, now)
            elif running.process.poll() is not None:
                self._plan_restart(running, now)

    def stop(self) -> None:
        """End all services; SIGKILL for those that do not end in their time of grace."""
        start, stopping = time.monotonic(), self._running
        self._running = []
        for running in stopping:
            _signal_group(running.process, signal.SIGTERM)
        for running in stopping:
            left = start + running.service.grace_s - time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(max(left, 0.0))
            _signal_group(running.process, signal.SIGKILL)
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
        _signal_group(running.process, signal.SIGTERM)
        lived = now - running.started
        running.short_lives = running.short_lives + 1 if lived < _SHORT_LIFE_S else 0
        if running.short_lives >= _MAX_SHORT_LIVES:
            msg = (
                f"{service.name} ended {running.short_lives} times within {_SHORT_LIFE_S:.0f} s "
                f"of its start, last with code {code}; its log {running.log} ends with\n"
                f"{self.tail(service.name)}"
            )
            raise ServiceError(msg)
        self.say(f"{service.name} ended with code {code}; starting it again (log: {running.log})")
        running.restart_at = now + 2.0 ** (running.short_lives - 1)

    def _restart_when_due(self, running: _Running, now: float) -> None:
        if running.restart_at is not None and now >= running.restart_at:
            running.process = self._launch(running.service, running.log)
            running.started, running.restart_at = now, None


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal to every process of the group, if any is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)  # the leader's pid is the group's id
