"""Flows that stand in for the real ones: small, and told by files what to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow, get_run_logger

from models.refs import StudyVersionRef


@flow(name="study arrived", flow_run_name="study {version}")
def study_arrived(version: StudyVersionRef) -> str:
    """Says in which process it ran. Waits while a file named after its version and `.wait` is there."""
    folder = Path(os.environ["NOCTURNE_TEST_FOLDER"])
    (folder / f"{version.key}.seen").open("a").write(f"{os.getpid()} {type(version).__name__}\n")
    get_run_logger().info("seen")
    if (folder / f"{version.key}.fail").exists():
        raise ValueError("this one was asked to fail")
    if (folder / f"{version.key}.die").exists():
        (folder / f"{version.key}.die").unlink()
        os._exit(3)
    while (folder / f"{version.key}.wait").exists():
        time.sleep(0.05)
    return version.key


@flow(name="long work", persist_result=True)
def long_work(key: str) -> str:
    """As `study_arrived`, for the worker that starts a process for each run."""
    folder = Path(os.environ["NOCTURNE_TEST_FOLDER"])
    (folder / f"{key}.seen").open("a").write(f"{os.getpid()} {type(key).__name__}\n")
    while (folder / f"{key}.wait").exists():
        time.sleep(0.05)
    return key
