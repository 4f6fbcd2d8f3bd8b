"""Prepared slices that come in order and are kept for as long as the image's own slices look at them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.imaging.boundaries import Near, likeliest

Float32 = NDArray[np.float32]


class Held:
    """Prepared slices that are still needed: (k, n, y, x) parts, without gaps."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Float32]] = []
        self.end = 0
        self._spare: Float32 | None = None  # used again: the kernel would clear a new one first

    @property
    def classes(self) -> int:
        """How many channels there are."""
        return len(self.parts[0][1]) if self.parts else 0

    def add(self, first: int, probabilities: NDArray[Any]) -> None:
        """Probabilities (k, n, y, x) from slice `first` on, which is `end`; copied."""
        spare = self._spare if self._spare is not None and self._spare.shape == probabilities.shape else None
        kept, self._spare = np.empty(probabilities.shape, np.float32) if spare is None else spare, None
        np.copyto(kept, probabilities)
        self.parts.append((first, kept))
        self.end = first + probabilities.shape[1]

    def channel(self, value: int, z0: int, z1: int) -> Float32:
        """One class's probability (z, y, x) in slices [z0, z1)."""
        return np.concatenate([part[value, max(0, z0 - first) : max(0, z1 - first)] for first, part in self.parts])

    def forget(self, below: int) -> None:
        """Parts that lie below slice `below` alone."""
        while self.parts and self.parts[0][0] + self.parts[0][1].shape[1] <= below:
            self._spare = self.parts.pop(0)[1]


class Decided(Held):
    """Prepared slices with their likeliest classes."""

    def __init__(self) -> None:
        super().__init__()
        self._maps: list[tuple[int, NDArray[np.uint8], Float32]] = []

    def add(self, first: int, probabilities: NDArray[Any]) -> None:
        """As above; the likeliest are found at once."""
        super().add(first, probabilities)
        self._maps.append((first, *likeliest(iter(self.parts[-1][1]))))

    def forget(self, below: int) -> None:
        """As above."""
        super().forget(below)
        self._maps = [held for held in self._maps if held[0] + len(held[1]) > below]

    def best(self, z0: int, z1: int) -> Float32:
        """The likeliest class's probability (z, y, x)."""
        return np.concatenate([best[max(0, z0 - first) : max(0, z1 - first)] for first, _, best in self._maps])

    def near(self, z0: int, z1: int) -> Near:
        """Slices [z0, z1) and what holds their probabilities."""
        labels = [labels[max(0, z0 - first) : max(0, z1 - first)] for first, labels, _ in self._maps]
        parts = [(first - z0, part) for first, part in self.parts if first < z1 and first + part.shape[1] > z0]
        return Near(np.concatenate(labels), tuple(parts))
