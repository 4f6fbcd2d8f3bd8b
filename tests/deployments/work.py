"""A worker for tests, with the stand-in flows: `python -m tests.deployments.work arrivals|worker GRACE`."""

from __future__ import annotations

import sys

from deployments.warm_worker import WarmWorker, run_arrivals, run_worker
from models.settings import Settings

if __name__ == "__main__":
    WarmWorker.modules = ("tests.deployments.trivial",)
    run = {"arrivals": run_arrivals, "worker": run_worker}[sys.argv[1]]
    run(Settings.load(), grace_seconds=float(sys.argv[2]))
