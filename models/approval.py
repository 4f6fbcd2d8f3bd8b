"""What a person says of a model that wants to serve."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

NOBODY: Final = "nobody"


class Word(BaseModel):
    """Yes or no, whose, and why. `NOBODY` has said what is said where nobody could be asked or nobody answered."""

    model_config = ConfigDict(frozen=True)
    approved: bool
    who: str
    reason: str

    def __str__(self) -> str:
        if self.who == NOBODY:
            return self.reason
        return f"{'approved' if self.approved else 'declined'} by {self.who}: {self.reason}"


def unasked(name: str) -> Word:
    """The answer where a person has to be asked about model `name`, and nobody can be."""
    return Word(approved=False, who=NOBODY, reason=f"a person has to confirm it: `nocturne models promote {name}`")
