"""`nocturne up`: every process of an installation on one host, under supervisord.

Supervisor (supervisord.org) starts each anew when it ends, keeps and rotates its log, and stops all of them in order.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.health import Health, health, processes
from flows.servers import guarded
from models.errors import ServiceUnavailableError, SettingsError
from models.settings import Settings

_LOG_BYTES = "20MB"
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Program:
    """One process: how it is started, and how long it may take to stop."""

    name: str
    command: tuple[str, ...]
    stop_seconds: int = 30
    once: bool = False

    def section(self, logs: Path) -> str:
        """Its part of supervisord's configuration."""
        restart = "unexpected" if self.once else "true"
        lines = [
            f"[program:{self.name}]",
            f"command={_quoted(self.command)}",
            f"autorestart={restart}",
            f"startsecs={0 if self.once else 3}",
            "startretries=1000000",  # a server that is away for hours must not end our patience
            f"stopwaitsecs={self.stop_seconds}",
            "stopasgroup=true",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={_escaped(str(logs / self.name))}.log",
            f"stdout_logfile_maxbytes={_LOG_BYTES}",
            "stdout_logfile_backups=3",
        ]
        return "\n".join(lines)


def programs(settings: Settings) -> list[Program]:
    """What has to run. A server that the settings place elsewhere is not started here."""
    names: tuple[str, ...] = () if settings.prefect_url else ("prefect",)
    names += () if settings.tracking().startswith("http") else ("mlflow",)
    ours = (sys.executable, "-m", "flows")
    servers = [Program(name, (*ours, "run", name)) for name in names]
    deploy = Program("deploy", (*ours, "deploy"), once=True)
    workers = [Program(name, (*ours, "run", name), stop_seconds=_STOP_SECONDS) for name in processes(settings)]
    return [*servers, deploy, *workers]


def configuration(settings: Settings) -> str:
    """supervisord's configuration file."""
    run, logs = settings.home / "run", settings.home / "logs"
    head = [
        "[supervisord]",
        "nodaemon=true",
        "silent=true",
        f"logfile={_escaped(str(logs / 'supervisord.log'))}",
        f"logfile_maxbytes={_LOG_BYTES}",
        f"pidfile={_escaped(str(run / 'supervisord.pid'))}",
        f"childlogdir={_escaped(str(logs))}",
        "umask=077",
        "minfds=1024",
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(p.section(logs) for p in programs(settings)) + "\n"


def start(settings: Settings) -> subprocess.Popen[bytes]:
    """supervisord with all programs. Raises SettingsError where it runs already, or a server would be open to all."""
    from flows.rounds import alone

    for program in programs(settings):
        if program.name in ("prefect", "mlflow"):
            guarded(settings, program.name)
    for name in ("run", "logs"):
        (settings.home / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    with alone(settings.home, "listener"):
        pass  # another installation's processes on this home would show here
    file = settings.home / "run" / "supervisord.conf"
    file.touch(mode=0o600)
    file.write_text(configuration(settings), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(file)],
        env={**os.environ, "NOCTURNE_HOME": str(settings.home)},
        cwd=settings.home,
        start_new_session=True,  # Ctrl-C is ours to pass on: in order, and once
    )


def supervise(settings: Settings, tell: Callable[[Sequence[Health]], None]) -> int:
    """Start everything, tell how it is whenever that changes, and stop everything on Ctrl-C or SIGTERM.

    Returns supervisord's exit code. Raises ServiceUnavailableError where it ends by itself.
    """
    asked: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: asked.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    process = start(settings)
    told: Sequence[tuple[str, str]] = ()
    try:
        while not asked and process.poll() is None:
            found = health(settings)
            if (states := [(one.name, one.state) for one in found]) != told:
                tell(found)
                told = states
            _wait(asked, 2.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        code = stop(process)
    if not asked:
        raise ServiceUnavailableError(
            f"the supervisor ended by itself with code {code}",
            where="up",
            hint=f"see {settings.home / 'logs' / 'supervisord.log'}",
        )
    return code


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask supervisord to stop its programs, and wait."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout=2 * _STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _wait(asked: Sequence[int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not asked and time.monotonic() < end:
        time.sleep(0.1)


def _quoted(command: Sequence[str]) -> str:
    if any("\n" in part for part in command):
        raise SettingsError("a line break in a path or an address", where="settings")
    return _escaped(shlex.join(command))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # supervisord expands %(…)s
