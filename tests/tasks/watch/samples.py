"""Simulated images of one hospital, and of another."""

from __future__ import annotations

import numpy as np

from models.plan import CaseFacts, ChannelLevels
from tasks.watch.seen import Case

SCANNERS = (("SIEMENS", "Avanto", 0.7), ("GE", "Signa", 0.2), ("Philips", "Achieva", 0.1))


def cases(
    count: int,
    seed: int,
    *,
    spacing: float = 1.0,
    brightness: float = 1.0,
    maker: str = "",
    prefix: str = "",
    channels: int = 1,
) -> list[Case]:
    """One image a patient: spacings of a few protocols, intensities of a body, three scanners."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        made = SCANNERS[rng.choice(len(SCANNERS), p=[share for *_, share in SCANNERS])]
        step = float(rng.choice((0.8, 1.0, 1.2)) * spacing * (1 + 0.01 * rng.standard_normal()))
        size = int(rng.integers(30, 60))
        levels = []
        for _ in range(channels):
            level = (100 + 20 * rng.standard_normal()) * brightness
            levels.append(ChannelLevels(p05=0.4 * level, median=level, p95=2.2 * level))
        facts = CaseFacts(
            volume=f"{prefix}{seed}-{number}",
            shape=(size, 40, 40),
            spacing=(step, 0.7 * step, 0.7 * step),
            cropped_shape=(size, 40, 40),
            median=levels[0].median,
            iqr=levels[0].p95 - levels[0].p05,
            orientation="HPL",
            levels=tuple(levels),
        )
        found.append(Case(f"P{prefix}{seed}-{number}", facts, maker or made[0], f"{maker} one" if maker else made[1]))
    return found
