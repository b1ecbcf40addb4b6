"""Who is the slowest, and by how much, from what workers tell of their time."""

from __future__ import annotations

from dtrain.comm.memory import PHASES
from dtrain.train.recorder import _skew


def seconds(**phases: float) -> list[float]:
    return [phases.get(phase, 0.0) for phase in PHASES]


def test_the_slowest_takes_longest_to_its_gradients_in_the_mean_of_its_steps() -> None:
    fast = seconds(data=1.0, forward=2.0, backward=1.0, sum=0.5, wait=9.0)  # 4 s in 4 steps
    slow = seconds(forward=3.0, backward=1.5, update=0.25)  # 4.5 s in 3 steps
    assert _skew({0: (fast, 4), 7: (slow, 3)}) == (7, 0.5)
    assert _skew({7: (slow, 3), 0: (fast, 4)}) == (7, 0.5)


def test_one_worker_waits_for_nobody() -> None:
    assert _skew({3: (seconds(data=1.0), 1)}) == (3, 0.0)


def test_a_worker_that_has_told_nothing_yet_is_left_out() -> None:
    assert _skew({0: (seconds(data=1.0), 1), 1: (seconds(), 0)}) == (0, 0.0)
    assert _skew({1: (seconds(), 0)}) == (None, 0.0)
