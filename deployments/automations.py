"""What the server does by itself: a run for each arrived study, lost runs noticed, people told of failures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from deployments.names import ARRIVALS, SILENT, TAG
from deployments.notifications import channels
from flows.states import AWAY
from models.settings import Settings
from tasks.receive import watermark
from tasks.receive.relay import EVENT, RESOURCE
from tasks.stores import alerts

SILENT_SECONDS: Final = 180
"""Longer than the watchdog's patience: this acts where the watchdog is away."""

_RUNS: Final = "prefect.flow-run.*"
_FAILURES: Final = ("Failed", "Crashed", "TimedOut")
_ENDS: Final = (*_FAILURES, AWAY, "Completed", "Cancelled", "Suspended", "AwaitingRetry")
_BODY: Final = """Run: {{ flow_run.name }}
Deployment: {{ flow.name }}/{{ deployment.name }}
State: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run|ui_url }}"""
_MOVED: Final = """{{ event.payload.measure }} ({{ event.payload.kind }}): {{ event.payload.told }}
Looked at: the last {{ event.payload.cases }} cases
See: nocturne drift {{ event.payload.model }}"""
_DAMAGED: Final = """{{ event.payload.told }}
See: nocturne models show {{ event.payload.model }}"""
_FULL: Final = """Free under the spool: {{ (event.payload.free_bytes / 1e9) | round(1) }} GB; \
{{ (event.payload.wanted_bytes / 1e9) | round(1) }} GB must stay free (listener.free_bytes).
No association is accepted until then: senders keep what they have. Free space, or move `spool` to a larger disk."""


def automate(
    client: SyncPrefectClient, settings: Settings, deployments: Mapping[str, UUID], asking: Collection[str] = ()
) -> None:
    """Make, change or remove the automations that these deployments and settings mean.

    The runs of those that are `asking`, by name, may be suspended until a person has answered.
    """
    wanted = {one.name: one for one in _wanted(settings, deployments, asking)}
    there = {found.name: found for found in client.read_automations() if TAG in found.tags}
    for name, automation in wanted.items():
        if (found := there.get(name)) is None:
            client.create_automation(automation)
        elif _plain(found) != _plain(automation):
            # Somebody may have switched it off in the UI.
            client.update_automation(found.id, automation.model_copy(update={"enabled": found.enabled}))
    for name, found in there.items():
        if name not in wanted:
            client.delete_automation(found.id)


def _wanted(settings: Settings, deployments: Mapping[str, UUID], asking: Collection[str]) -> Iterator[AutomationCore]:
    yield _arrival(deployments[ARRIVALS])
    # A training that waits for a person is suspended, which this could not tell from lost: the watchdog can.
    yield _lost([i for name, i in deployments.items() if name not in asking])
    for channel, block in channels(settings.notify):
        yield _failed(channel, block, list(deployments.values()))
        yield _waiting(channel, block, list(deployments.values()))
        yield _drifted(channel, block)
        yield _damaged(channel, block)
        yield _full(channel, block)


def _arrival(deployment: UUID) -> AutomationCore:
    version = {"__prefect_kind": "jinja", "template": "{{ event.payload.version | tojson }}"}
    return AutomationCore(
        name="nocturne: a study arrived",
        description="One run for each version of a study.",
        tags=[TAG],
        trigger=EventTrigger(
            expect={EVENT},
            match=ResourceSpecification({"prefect.resource.id": f"{RESOURCE}*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(seconds=60),  # the same version twice within a minute is one run
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment,
                # Plain Jinja would give the flow a string.
                parameters={"version": {"__prefect_kind": "json", "value": version}},
            )
        ],
    )


def _lost(deployments: list[UUID]) -> AutomationCore:
    return AutomationCore(
        name="nocturne: a run was lost",
        description=f"No sign of life for {SILENT_SECONDS} s: the run has crashed. The watchdog starts it again.",
        tags=[TAG],
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            # The next heartbeat, or an end. No more than these: each event that is expected costs the server a write.
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match=ResourceSpecification({"prefect.resource.id": _RUNS}),
            match_related=_of(deployments),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=SILENT)],
    )


def _failed(channel: str, block: UUID, deployments: list[UUID]) -> AutomationCore:
    return AutomationCore(
        name=f"nocturne: a run failed ({channel})",
        description=f"Told by {channel}.",
        tags=[TAG],
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{failure}" for failure in _FAILURES},
            match=ResourceSpecification({"prefect.resource.id": _RUNS}),
            match_related=_of(deployments),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[_notify(block, "{{ flow_run.name }} {{ flow_run.state.name | lower }}", _BODY)],
    )


def _waiting(channel: str, block: UUID, deployments: list[UUID]) -> AutomationCore:
    return AutomationCore(
        name=f"nocturne: studies wait for a server ({channel})",
        description=f"Told by {channel}, once an hour: each is taken up again by itself, for a day.",
        tags=[TAG],
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{AWAY}"},
            match=ResourceSpecification({"prefect.resource.id": _RUNS}),
            match_related=_of(deployments),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(hours=1),
        ),
        actions=[_notify(block, "studies wait for a server that is away", _BODY)],
    )


def _drifted(channel: str, block: UUID) -> AutomationCore:
    about = "{{ event.payload.model }}: {{ event.payload.measure }} has moved"
    return _told_of(
        alerts.EVENT, f"{alerts.RESOURCE}*", "a model's data have moved", channel, _notify(block, about, _MOVED)
    )


def _damaged(channel: str, block: UUID) -> AutomationCore:
    action = _notify(block, "{{ event.payload.model }}: {{ event.payload.measure }} are damaged", _DAMAGED)
    return _told_of(alerts.DAMAGED, f"{alerts.RESOURCE}*", "a model's files are damaged", channel, action)


def _full(channel: str, block: UUID) -> AutomationCore:
    action = _notify(block, "the spool is full, studies are refused", _FULL)
    return _told_of(watermark.EVENT, watermark.RESOURCE, "the spool is full", channel, action)


def _told_of(event: str, resource: str, what: str, channel: str, action: SendNotification) -> AutomationCore:
    return AutomationCore(
        name=f"nocturne: {what} ({channel})",
        description=f"Told by {channel}, once for each event.",
        tags=[TAG],
        trigger=EventTrigger(
            expect={event},
            match=ResourceSpecification({"prefect.resource.id": resource}),
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[action],
    )


def _notify(block: UUID, subject: str, body: str) -> SendNotification:
    return SendNotification(block_document_id=block, subject=f"Nocturne: {subject}", body=body)


def _of(deployments: list[UUID]) -> ResourceSpecification:
    """Runs that these deployments started: the flows within them are told of by the run itself."""
    ids = sorted(f"prefect.deployment.{i}" for i in deployments)
    return ResourceSpecification({"prefect.resource.role": "deployment", "prefect.resource.id": ids})


def _plain(automation: AutomationCore | Automation) -> dict[str, Any]:
    """What of an automation is ours to say."""
    core = AutomationCore.model_validate(automation.model_dump(mode="json"))
    return _sorted(core.model_dump(mode="json", exclude={"enabled", "owner_resource"}))


def _sorted(value: Any) -> Any:
    """Sets come in any order."""
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted((_sorted(inner) for inner in value), key=repr)
    return value
