"""Who carries out a training: one process alone, or several that each take a part of every batch.

In a crew of w, process r lets the network see the elements r, r + w, r + 2w … of the very batch that one process would
draw, augment and mix. Their outputs are gathered, so that the loss is the whole batch's, whatever it sums over (soft
Dice does over all patches); each process derives it for its own elements, and DistributedDataParallel (Li et al. 2020)
adds the gradients up. So a crew learns what one process learns, but for rounding and for what the network draws
itself (dropout), and all its members hold the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from tasks.train.checkpoint import Checkpoint

Result = TypeVar("Result")
Logits = Tensor | list[Tensor]


@dataclass(frozen=True)
class Crew:
    """One process alone: nothing is shared out, and nobody is asked."""

    rank: int = 0
    size: int = 1
    most: int | None = None
    """The largest batch to begin with, where a larger one was too much before."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that validates, saves and reports."""
        return self.rank == 0

    def wrapped(self, network: nn.Module) -> nn.Module:
        """What is called in place of `network`."""
        return network

    def meet_within(self, network: nn.Module) -> bool:
        """Whether processes wait for each other while they ask a `network` that was wrapped."""
        return False

    def own(self, batch: Tensor) -> Tensor:
        """The elements of a batch (b, …) that are this process's."""
        return batch if self.size == 1 else batch[self.rank :: self.size].contiguous()

    def whole(self, logits: Logits, count: int) -> Logits:
        """The outputs for all `count` elements, of which only this process's own pass gradients on."""
        return logits

    def backward(self, loss: Tensor, count: int) -> None:
        """Gradients of the loss of a batch of `count`, in all processes. Raises as `for_good`."""
        loss.backward()

    def drawing(self, seed: int, step: int) -> None:
        """Before each step: what the network draws itself must differ between processes, and not between runs."""

    def together(self, work: Callable[[], Result]) -> Result:
        """What `work` gives. Raises MemoryError in all processes where one of them has run out of memory."""
        return work()

    def for_good(self, work: Callable[[], Result], count: int) -> Result:
        """What `work` on a batch of `count` gives, which one process cannot take back while the others go on.

        Raises TrainingError in the process that has run out of memory: all of them have to begin anew.
        """
        return work()

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether anybody wants to stop, and the leader's clock."""
        return stop, seconds

    def told(self, value: Any) -> Any:
        """The leader's value, which JSON can hold."""
        return value

    def told_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The leader's checkpoint."""
        return checkpoint


ALONE = Crew()
