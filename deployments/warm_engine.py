"""The process in which arrivals run, one after another: what it has imported and loaded stays in its memory.

It is told a flow run's id on standard input and answers on standard output when that run is over. It is a process of
its own so that a run can be ended at once, and so that a fault in native code ends one run and not the worker. When the
worker is gone it finishes the run that it has, and ends.

    python -m deployments.warm_engine MODULE …
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from uuid import UUID

from prefect.engine import handle_engine_signals
from prefect.flow_engine import load_flow, load_flow_run, run_flow

from tasks.imaging.heap import give_back

READY = "ready"
DONE = "done"


def main(modules: Sequence[str]) -> None:
    """Import `modules`, then run whatever is asked for until standard input ends."""
    # The pipes are ours alone: what a flow prints goes to the log, and leaving a run may close `sys.stdin`.
    questions = os.fdopen(os.dup(sys.stdin.fileno()))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to answer
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what stays for good need not be looked at after every run
    print(READY, file=answers)
    for line in questions:
        print(DONE, run(UUID(line.strip())), file=answers)
        # What the run left in memory goes before the next one, and does not add up.
        gc.collect()
        give_back()


def run(flow_run_id: UUID) -> int:
    """Run one flow run to its end, whatever that is; returns an exit code, 0 where Prefect knows the outcome."""
    try:
        with handle_engine_signals(flow_run_id):
            flow_run = load_flow_run(flow_run_id)
            flow = load_flow(flow_run)
            # A state, not a result: a flow that failed has been told of, and is no fault of this process.
            run_flow(flow, flow_run=flow_run, return_type="state")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
