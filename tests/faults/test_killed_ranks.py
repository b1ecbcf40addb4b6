"""Fifty kills under Ray, and under mpirun with ULFM: not a step is lost. `pytest -m slow -s` prints the times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.recovery import Recoveries, ray, ulfm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.mark.parametrize(
    "measure",
    [ray, ulfm, lambda kills: ulfm(kills, ranks_per_host=1)],
    ids=["Ray", "ULFM, one host", "ULFM, a host each"],
)
def test_fifty_kills_cost_no_step(measure: Callable[[int], Recoveries]) -> None:
    found = measure(50)
    print(f"\n{found.row()}")
    assert len(found.seconds) >= 50
    assert (found.steps_lost, found.is_equal) == (0, True)
    assert max(found.seconds) < 30  # a hang, not a measurement
