from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.evaluate.cost import Stopwatch, cost_of


def test_each_piece_of_work_is_timed_and_its_result_passed_on() -> None:
    timed = Stopwatch()
    assert timed(divmod, 7, 2) == (3, 1)
    assert timed(sorted, [1, 2], reverse=True) == [2, 1]
    with pytest.raises(ZeroDivisionError):
        timed(divmod, 1, 0)
    assert len(timed.seconds) == 2
    assert min(timed.seconds) >= 0


def test_cost_is_the_median_the_longest_and_the_weights_size(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"0" * 2_500_000)
    found = cost_of((1.0, 9.0, 2.0), weights, torch.device("cpu"))
    assert found is not None
    assert (found.seconds_median, found.seconds_longest, found.megabytes) == (2, 9, 2.5)
    assert found.device.startswith("cpu (")
    assert cost_of((), weights, torch.device("cpu")) is None
