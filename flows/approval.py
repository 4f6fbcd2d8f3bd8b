"""A person's word before a model serves: the run is suspended, the page shows the figures and a form."""

from __future__ import annotations

from prefect import suspend_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import Field

from flows.artifacts import figures
from models.approval import NOBODY, Word, unasked
from models.evaluation import Comparison, Evaluation
from models.refs import EvaluationRef
from tasks.stores.house import Stores


class Approval(RunInput):
    """The form."""

    approve: bool = Field(False, title="Let it serve", description="unticked: the champion goes on serving")
    name: str = Field(title="Your name", min_length=1, description="kept in the audit trail")
    reason: str = Field(title="Why", min_length=1, description="kept in the audit trail")


def word_of_a_person(
    stores: Stores,
    name: str,
    after: EvaluationRef,
    before: EvaluationRef | None,
    comparison: Comparison | None,
    hours: float,
) -> Word:
    """Suspend this run until somebody has filled in the form; the process ends meanwhile.

    Doing it again for the same two models finds the answer. Whoever resumes the run when the time is up answers as
    nobody (`unanswered`). A run that no deployment started cannot be suspended: the answer is no, with the way on.
    """
    new = stores.evaluations.read(after.key)
    if not deployment.id:
        return unasked(name)
    old = stores.evaluations.read(before.key) if before else None
    text = f"{shown(name, new, old, comparison)}\n\nWithout an answer within {hours:g} hours it will not."
    create_markdown_artifact(key="approval", description=f"{name}: may it serve?", markdown=text)
    form = Approval.with_initial_data(description=text)
    # The key names both models: another champion meanwhile is another question.
    said = suspend_flow_run(wait_for_input=form, key=f"approval-{new.package[:24]}-{old.package[:24] if old else ''}")
    return Word(approved=said.approve, who=said.name, reason=said.reason)


def unanswered(hours: float) -> dict[str, str | bool]:
    """What stands in the form when the time is up."""
    return {"approve": False, "name": NOBODY, "reason": f"nobody answered within {hours:g} hours"}


def shown(name: str, new: Evaluation, old: Evaluation | None, comparison: Comparison | None) -> str:
    """Champion and challenger side by side, as Markdown."""
    before = {(row["metric"], row["class"]): row for row in (figures(old) if old else ())}
    lines = [
        f"## May the new {name} serve?",
        "",
        f"Both were judged on the same {new.n_patients} test patients."
        if old
        else f"It would be the first. Judged on {new.n_patients} test patients.",
        "",
        "| metric | class | new | 95 % interval | champion | 95 % interval |",
        "|---|---|---:|---|---:|---|",
    ]
    for row in figures(new):
        was = before.get((row["metric"], row["class"]), {"value": "none", "95 % interval": ""})
        cells = (row["metric"], row["class"], row["value"], row["95 % interval"], was["value"], was["95 % interval"])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    if comparison is not None:
        gap = comparison.primary_difference
        interval = "" if gap.low is None else f" [{gap.low:+.4f}, {gap.high:+.4f}]"
        lines += ["", f"Paired difference of {comparison.primary}: **{gap.value:+.4f}**{interval}, {gap.n} patients."]
    return "\n".join(lines)
