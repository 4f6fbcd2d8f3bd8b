"""Memory that stays with the process while tiles go through, and goes back afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tasks.imaging import heap
from tasks.imaging.heap import kept_memory
from tasks.imaging.sliding import sliding_window

GLIBC = sys.platform.startswith("linux")

FAULTS = """
    import resource
    import numpy as np
    from tasks.imaging.heap import kept_memory

    def pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            np.ones(16 << 20)  # 128 MiB, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def held():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

    pages()
    usual = pages()
    with kept_memory("cpu"), kept_memory("cpu"):
        pages()
        kept, inside = pages(), held()
    print(usual, kept, inside, held(), pages())
"""


@pytest.mark.skipif(not GLIBC, reason="glibc alone keeps memory")
def test_freed_blocks_are_used_again_and_given_back_at_the_end() -> None:
    script = [sys.executable, "-c", textwrap.dedent(FAULTS)]
    usual, kept, inside, after, again = map(int, subprocess.check_output(script, text=True).split())
    assert kept < usual / 4
    assert after < inside - 64
    assert again > kept


def test_other_devices_are_left_alone() -> None:
    with kept_memory("cuda"):
        assert torch.ones(3).sum() == 3


def test_several_at_once_and_an_error_leave_it_as_it_was() -> None:
    before, network = heap._users, torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    image = torch.randn(1, 12, 10, 9, generator=torch.Generator().manual_seed(0))

    def once(_: int) -> torch.Tensor:
        return sliding_window(network, image, (4, 6, 8), 0.5, precision="fp32")

    def fails(_: int) -> None:
        with kept_memory("cpu"):
            raise InterruptedError

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(once, range(8)))
        for error in [pool.submit(fails, n) for n in range(4)]:
            with pytest.raises(InterruptedError):
                error.result()
    assert all(torch.equal(one, found[0]) for one in found)
    assert heap._users == before
