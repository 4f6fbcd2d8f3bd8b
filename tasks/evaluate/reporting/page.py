"""The page: the document's sections in their order, laid out by one template with its style inside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from models.evaluation import Picture
from models.report import Report
from tasks.evaluate.reporting import evidence, story
from tasks.evaluate.reporting.blocks import Section
from tasks.evaluate.reporting.compose import CURVE

TEMPLATE, STYLE = "page.html.j2", "page.css"


def render(report: Report, pictures: Sequence[Picture]) -> str:
    """One self-contained HTML text. Sections are always there; one without content says why."""
    when = report.created_at
    return _template().render(
        report=report,
        kind=report.good.evaluation.kind,
        when=f"{when.day} {when:%B %Y, %H:%M %Z}".strip(),
        sections=sections(report, pictures),
        style=(Path(__file__).parent / STYLE).read_text(encoding="utf-8"),
    )


def sections(report: Report, pictures: Sequence[Picture]) -> tuple[Section, ...]:
    """In the order of the page. Their ids are stable."""
    learning = [p for p in pictures if p.name.startswith(CURVE)]
    return (
        story.summary(report),
        story.data(report),
        story.how(report, learning),
        evidence.good(report, [p for p in pictures if p not in learning]),
        evidence.champion(report),
        evidence.fails(report),
        story.drift(report),
        story.decision(report),
        story.provenance(report),
    )


@cache
def _template() -> jinja2.Template:
    place = jinja2.FileSystemLoader(Path(__file__).parent)
    surroundings = jinja2.Environment(
        loader=place, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return surroundings.get_template(TEMPLATE)
