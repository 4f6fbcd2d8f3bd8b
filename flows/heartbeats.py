"""Prefect's `flow`, whose runs do not wait for their own sign of life.

The thread that gives it looks once a second whether the run has ended, and a run waits for it: up to a second for each,
and as much for each flow run within it. Async flows do not wait; nor do ours. The thread gives no sign of life of a run
that has ended.
"""

from __future__ import annotations

from functools import partial
from inspect import signature

from prefect import flow, flow_engine

__all__ = ["flow"]

_WAITS = "join_on_exit"
"""Of Prefect's function: a Prefect that names it otherwise is left as it is."""

if (_heartbeats := getattr(flow_engine, "_send_heartbeats", None)) and _WAITS in signature(_heartbeats).parameters:
    flow_engine._send_heartbeats = partial(_heartbeats, **{_WAITS: False})
