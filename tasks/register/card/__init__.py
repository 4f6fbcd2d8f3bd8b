"""The model card: gathered from what was recorded, as a document and as Markdown."""

from __future__ import annotations

from tasks.register.card.gather import gather
from tasks.register.card.markdown import markdown

__all__ = ["gather", "markdown"]
