"""Which steps are sampled, and the noise scale that the shards' norms give."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dtrain.comm.memory import RING
from dtrain.train.norms import NoiseScale, SampledSteps

# --- which steps ------------------------------------------------------------------------------------------------------


def chosen(sampled: SampledSteps, grants: list[tuple[int, int]]) -> list[int]:
    for first, upto in grants:
        sampled.choose(first, upto)
    return [step for step in range(grants[-1][1]) if step in sampled]


def test_steps_that_the_interval_divides() -> None:
    assert chosen(SampledSteps(5, 0.0), [(3, 4), (4, 6), (6, 10), (10, 21)]) == [5, 10, 15, 20]


def test_by_time_one_step_of_those_that_are_granted_when_it_is_due() -> None:
    now = 100.0
    sampled = SampledSteps(0, 1.0, clock=lambda: now)
    assert chosen(sampled, [(0, 40)]) == [0]
    now = 100.9
    assert chosen(sampled, [(40, 80)]) == [0]
    now = 101.0
    assert chosen(sampled, [(80, 120), (120, 160)]) == [0, 80]


def test_by_time_it_is_at_most_every_twentieth_step() -> None:
    now = 0.0
    sampled = SampledSteps(0, 1.0, clock=lambda: now)
    for step in range(45):
        now += 5.0
        sampled.choose(step, step + 1)
    assert [step for step in range(45) if step in sampled] == [0, 20, 40]


def test_none_are_sampled_if_it_is_off() -> None:
    assert chosen(SampledSteps(0, 0.0), [(0, 100)]) == []


def test_steps_that_nobody_can_ask_for_any_more_are_forgotten() -> None:
    sampled = SampledSteps(1, 0.0)
    for step in range(3 * RING):
        sampled.choose(step, step + 1)
    assert len(sampled._chosen) <= RING + 1


# --- the noise scale --------------------------------------------------------------------------------------------------


def figures(square: float, variance: float, sizes: list[int]) -> tuple[float, list[float], list[int]]:
    """What a step would show if every norm were as it is in expectation."""
    norm = math.sqrt(square + variance / sum(sizes))
    return norm, [n * n * (square + variance / n) for n in sizes], sizes


@pytest.mark.parametrize("sizes", [[16] * 8, [12] * 5 + [11] * 3, [1, 7], [2, 1, 1]])
def test_the_expected_norms_give_back_gradient_and_variance(sizes: list[int]) -> None:
    noise = NoiseScale().add(*figures(0.25, 8.0, sizes))
    assert noise == pytest.approx({"variance": 8.0, "square": 0.25, "scale": 32.0})


def test_real_samples_give_the_variance_and_the_norm_in_the_mean() -> None:
    """Gradients of samples drawn around a known one: the estimates have no bias, whatever the sizes of the shards."""
    random, elements, sizes = np.random.default_rng(0), 50, [6, 6, 5, 5]
    gradient = random.standard_normal(elements)
    found = []
    for _ in range(1500):
        samples = gradient + 2.0 * random.standard_normal((sum(sizes), elements))
        sums = [part.sum(axis=0) for part in np.split(samples, np.cumsum(sizes)[:-1])]
        norm = float(np.linalg.norm(samples.mean(axis=0)))
        found.append(NoiseScale().add(norm, [float(s @ s) for s in sums], sizes))
    variance, square = (np.mean([each[key] for each in found]) for key in ("variance", "square"))
    assert variance == pytest.approx(4.0 * elements, rel=0.02)
    assert square == pytest.approx(gradient @ gradient, rel=0.02)


def test_both_parts_are_averaged_before_they_are_divided() -> None:
    noise = NoiseScale()
    noise.add(*figures(1.0, 10.0, [4, 4]))
    second = noise.add(*figures(3.0, 20.0, [4, 4]))
    assert second["scale"] == pytest.approx((0.9 * 10 + 20) / (0.9 * 1 + 3))


def test_a_gradient_that_drowns_in_the_noise_has_an_infinite_scale() -> None:
    noise = NoiseScale().add(0.0, [100.0, 100.0], [4, 4])
    assert noise["square"] < 0
    assert noise["scale"] == math.inf


def test_one_shard_tells_nothing_and_neither_does_nan() -> None:
    assert NoiseScale().add(1.0, [16.0], [4]) is None
    assert NoiseScale().add(1.0, [math.inf, 1.0], [4, 4]) is None
    assert NoiseScale().add(math.nan, [1.0, 1.0], [4, 4]) is None
