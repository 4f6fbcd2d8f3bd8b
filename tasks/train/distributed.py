"""One network's learning by several processes: torchrun starts them, and starts them again after one has died.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3
        --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m tasks.train.distributed JOB

JOB is the file that `described` writes: plan, cases, and where they lie; nothing secret. On one host `learn_jointly`
does the same. All processes then start anew from the newest checkpoint, which the first of them keeps; asked to stop
(SIGTERM to torchrun), they save where they stand. The meeting point of torchrun is not authenticated: several hosts
belong into a network of their own.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from models.dataset import DatasetRow
from models.errors import NocturneError
from models.plan import Plan
from tasks.imaging.device import choose_device
from tasks.progress import Stage, shown_on, stage
from tasks.stores.places import write_synced
from tasks.stores.prepared import PreparedStore
from tasks.train.cascade import ToldStore
from tasks.train.folds import Share
from tasks.train.joint import BatchTooLargeError, Joint
from tasks.train.learning import Job, learnt_already, taught
from tasks.train.loop import Budget, Listener, Termination, TrainEvent
from tasks.train.patches import Opener
from tasks.train.transfer.course import Origin

MAX_RESTARTS = 3
_FOLDER, _JOB, _ORIGIN, _SAID, _FAILED, _MOST, _LOG = (
    "joint",
    "job.json",
    "origin.safetensors",
    "said.json",
    "failed",
    "most",
    "log.txt",
)
_ATTENDED = "--attended"
_HERE = "127.0.0.1"
_FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Without it torchrun hands processes that are started again the addresses of those that died (seen in 2.13)."""
_LOOK_SECONDS = 0.25
_SAY_SECONDS = 0.5
_log = logging.getLogger(__name__)


def processes_for(plan: Plan, wanted: int) -> int:
    """How many processes learn together: `wanted`, or (0) one per GPU; never more than a batch has elements.

    A synthesis is learnt by one: its two networks take turns within a step.
    """
    gpus = torch.cuda.device_count() if choose_device(plan.train.device).type == "cuda" else 0
    asked = wanted or max(1, gpus)
    most = 1 if plan.kind == "synthesis" else min(asked, plan.train.batch_size, gpus or asked)
    if most < asked:
        why = "it is a synthesis" if plan.kind == "synthesis" else f"batch of {plan.train.batch_size}, {gpus} GPUs"
        _log.info("%d of %d processes learn together: %s", most, asked, why)
    return most


def learn_jointly(job: Job, processes: int, termination: Termination, on_event: Listener | None = None) -> None:
    """Carry `job` out in `processes` on this host; what was learnt lies in its checkpoints.

    What they cannot finish is left to whoever calls `learn` afterwards, who goes on from the last checkpoint, and sees
    why. So does, at once, who was asked to stop meanwhile.
    """
    if learnt_already(job):
        return
    folder = job.workspace / _FOLDER
    path = described(job, folder)
    for left in (folder / _SAID, folder / _FAILED, folder / _MOST, *folder.glob("meeting-*")):
        left.unlink(missing_ok=True)
    with (folder / _LOG).open("wb") as log, termination.listening():
        process = subprocess.Popen(
            command(path, processes),
            env=_environment(processes),
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,  # its end tells the processes that this one has ended
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _attend(process, job, folder, termination, on_event)
        finally:
            assert process.stdin is not None  # noqa: S101 - as it was opened
            process.stdin.close()
            process.wait()
    if not learnt_already(job) and not termination():
        _log.warning("the %d processes did not finish; one process goes on", processes)


def command(job: Path, processes: int) -> list[str]:
    """torchrun on this host alone. They meet by files: nothing listens but gloo, on the loopback interface."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}"]
    known = f"{os.getpid()}-{time.time_ns()}"
    meeting = [
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={job.with_name('meeting')}-{known}",
    ]
    meeting += [f"--rdzv-id={known}", f"--local-addr={_HERE}"]
    return [*run, *meeting, f"--max-restarts={MAX_RESTARTS}", "-m", "tasks.train.distributed", str(job), _ATTENDED]


def _environment(processes: int) -> dict[str, str]:
    """This process's, without the installation's settings, which hold secrets; cores are shared out."""
    cores = max(1, len(os.sched_getaffinity(0)) // processes)
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NOCTURNE_")}
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), _FRESH_STORE: "1"}
    return {"OMP_NUM_THREADS": str(cores), "GLOO_SOCKET_IFNAME": "lo", **kept, **own}


def _attend(
    process: subprocess.Popen[bytes], job: Job, folder: Path, termination: Termination, on_event: Listener | None
) -> None:
    """Show what the first process says until they have ended; end them when asked to, or where it is no use."""
    budget = Budget(job.share.plan.train)
    with stage("train", budget.total, budget.unit) as running:
        heard = _Hearing(folder / _SAID, running, on_event)
        while process.poll() is None:
            heard.more()
            if termination() or (folder / _FAILED).exists():
                process.terminate()
                process.wait()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
        heard.more()


# -- the job as a file ------------------------------------------------------------------------------------------


class _Origin(BaseModel):
    key: str
    told: str
    known: tuple[tuple[str, str], ...]
    members: tuple[str, ...]


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    plan: Plan
    learnt: tuple[DatasetRow, ...]
    judged: tuple[DatasetRow, ...]
    prepared: Path
    told: Path | None = None  # a cascade's second stage: what the first one found
    keys: tuple[tuple[str, str, str], ...]  # volume, label, prepared case
    workspace: Path
    key: str
    origin: _Origin | None = None


def described(job: Job, folder: Path) -> Path:
    """Write `job` into `folder` for other processes; returns its file. Raises TypeError for cases that are no files."""
    prepared, told = _places(job.prepared)
    share, origin = job.share, job.origin
    about = _Description(
        name=share.name,
        plan=share.plan,
        learnt=share.learnt,
        judged=share.judged,
        prepared=prepared,
        told=told,
        keys=tuple((*case, key) for case, key in job.keys.items()),
        workspace=job.workspace.absolute(),
        key=job.key,
        origin=origin
        and _Origin(key=origin.key, told=origin.told, known=tuple(sorted(origin.known)), members=origin.members),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if origin is not None:
        save_file({name: tensor.contiguous() for name, tensor in origin.weights.items()}, folder / _ORIGIN)
    write_synced(folder / _JOB, about.model_dump_json().encode())
    return folder / _JOB


def read_job(path: Path) -> Job:
    """The inverse of `described`."""
    about = _Description.model_validate_json(path.read_bytes())
    store: Opener = PreparedStore(about.prepared)
    if about.told is not None:
        store = ToldStore(store, about.told)
    origin = None
    if (kept := about.origin) is not None:
        weights = load_file(path.with_name(_ORIGIN))
        origin = Origin(weights, kept.key, kept.told, frozenset(kept.known), kept.members)
    keys = {(volume, label): key for volume, label, key in about.keys}
    share = Share(about.name, about.plan, about.learnt, about.judged)
    return Job(share, store, keys, about.workspace, about.key, origin)


def _places(store: Opener) -> tuple[Path, Path | None]:
    if isinstance(store, ToldStore):
        return _places(store.prepared)[0], store.folder.absolute()
    if isinstance(store, PreparedStore):
        return store.root.absolute(), None
    raise TypeError(f"{type(store).__name__} cannot be opened by another process")


# -- what the first process says --------------------------------------------------------------------------------


class _Saying:
    """A sink of progress, and a listener, that keep one small file up to date."""

    def __init__(self, path: Path) -> None:
        self._path, self._spent, self._note, self._said_at = path, 0.0, "", 0.0
        self._events: list[TrainEvent] = []

    def begin(self, name: str, total: float | None, unit: str) -> int:
        """There is one stage."""
        return 0

    def advance(self, handle: int, amount: float, note: str | None) -> None:
        """A step."""
        self._spent, self._note = self._spent + amount, note or self._note
        if time.monotonic() - self._said_at >= _SAY_SECONDS:
            self._say()

    def end(self, handle: int, note: str | None) -> None:
        """Training is over."""
        self._say()

    def __call__(self, event: TrainEvent) -> None:
        """A validation took place."""
        self._events.append(event)
        self._say()

    def _say(self) -> None:
        self._said_at = time.monotonic()
        said = {"spent": self._spent, "note": self._note, "events": [asdict(event) for event in self._events]}
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(said))
        fresh.replace(self._path)


class _Hearing:
    """The other side: what is new, to the stage and to the listener of this process."""

    def __init__(self, path: Path, running: Stage, on_event: Listener | None) -> None:
        self._path, self._running, self._on_event = path, running, on_event
        self._spent, self._step = 0.0, -1

    def more(self) -> None:
        """Pass on what was said since the last time."""
        try:
            said: Mapping[str, Any] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return
        if said["spent"] > self._spent:
            self._running.advance(said["spent"] - self._spent, said["note"])
            self._spent = said["spent"]
        for event in (TrainEvent(**each) for each in said["events"]):
            if event.step > self._step:
                self._step = event.step
                if self._on_event is not None:
                    self._on_event(event)


# -- one of the processes ---------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """What torchrun starts on each device: JOB [--attended]. Attended, it stops when its standard input ends."""
    path, termination = Path(arguments[0]), Termination()
    job = read_job(path)
    if _ATTENDED in arguments:
        threading.Thread(target=_follow, args=(termination,), daemon=True).start()
    meeting = path.parent if _ATTENDED in arguments else None
    most = int(short.read_text()) if (short := path.with_name(_MOST)).exists() else None
    crew = Joint.assembled(choose_device(job.share.plan.train.device), meeting, most)
    try:
        crew.check(job.share.plan.train.batch_size)
        _carry_out(job, crew, termination, _Saying(path.with_name(_SAID)))
    except BatchTooLargeError as error:
        # torchrun starts all of them again: from the newest checkpoint, with less.
        if error.count > crew.size:
            write_synced(path.with_name(_MOST), str(max(error.count // 2, crew.size)).encode())
        else:
            path.with_name(_FAILED).touch()
        raise
    except NocturneError:
        # The same in all of them, and again if they were started again.
        path.with_name(_FAILED).touch()
        raise
    except SystemExit:
        _log.info("process %d of %d left when asked to", crew.rank, crew.size)
    dist.destroy_process_group()


def _carry_out(job: Job, crew: Joint, termination: Termination, saying: _Saying) -> None:
    if not crew.leads:
        taught(job, termination, crew=crew)
        return
    with shown_on(saying):
        taught(job, termination, saying, crew)


def _follow(termination: Termination) -> None:
    while os.read(0, 1):  # not by sys.stdin, whose lock this thread would hold at the end
        pass
    termination.event.set()


if __name__ == "__main__":
    main(sys.argv[1:])
