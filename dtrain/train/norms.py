"""The norms that are taken at some steps only, the sampled ones: at which, and what the shards' norms say of the noise.

The training does not depend on it: at a sampled step a little more is read, and nothing else is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from dtrain.comm.memory import RING

LEAST_STEPS = 20
"""The least number of steps between sampled ones where time decides, so that the cost is small if steps are long."""
_DECAY = 0.9


class SampledSteps:
    """Which steps are sampled: each that ``every`` divides, or else one every ``seconds``; none if both are 0.

    Where time decides, from one to the next there are at least twenty steps. It is decided once per step, when it is
    granted.
    """

    def __init__(self, every: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._seconds, self._clock = every, seconds, clock
        self._next_time, self._next_step = -math.inf, 0
        self._chosen: set[int] = set()

    def choose(self, first: int, upto: int) -> None:
        """The steps ``first`` … ``upto`` - 1 are granted now, for the first time."""
        self._chosen = {step for step in self._chosen if step >= first - RING}
        if self._every:
            self._chosen.update(range(-(-first // self._every) * self._every, upto, self._every))
        elif self._seconds and self._clock() >= self._next_time and (step := max(first, self._next_step)) < upto:
            self._chosen.add(step)
            self._next_time, self._next_step = self._clock() + self._seconds, step + LEAST_STEPS

    def __contains__(self, step: int) -> bool:
        return step in self._chosen


class NoiseScale:
    """The simple noise scale of McCandlish et al. 2018 (arXiv:1812.06162), appendix A.1, from the shards' gradients.

    A shard of n samples is a small batch: the squared norm of its mean gradient is |G|² + S/n in expectation, G being
    the true gradient and S the variance of a sample's, summed over the elements; that of the whole batch of N samples
    is |G|² + S/N. Two equations give both, without bias. Their ratio S/|G|² is the batch at which noise and gradient
    weigh the same, in samples; as advised there, both are averaged over the sampled steps (decay 0.9) before they are
    divided. Every figure is a function of the shards' gradients alone, so the number of workers does not matter.
    """

    def __init__(self) -> None:
        self._variance = self._square = 0.0

    def add(self, norm: float, shard_squares: Sequence[float], sizes: Sequence[int]) -> dict[str, float] | None:
        """Take a step's norm of the mean gradient, and per shard the squared norm of the *sum* over its samples.

        Returns ``variance`` S and ``square`` |G|² of this step and ``scale``, the ratio of their averages (infinite
        if the gradient drowns in the noise); None if the step has one shard only or something is not finite.
        """
        samples, shards = sum(sizes), len(sizes)
        if shards < 2 or not all(map(math.isfinite, (norm, *shard_squares))):
            return None
        small = math.fsum(s / (n * n) for s, n in zip(shard_squares, sizes, strict=True)) / shards
        inverse = math.fsum(1 / n for n in sizes) / shards
        variance = (small - norm * norm) / (inverse - 1 / samples)
        square = norm * norm - variance / samples
        self._variance = _DECAY * self._variance + (1 - _DECAY) * variance
        self._square = _DECAY * self._square + (1 - _DECAY) * square
        scale = self._variance / self._square if self._square > 0 else math.inf
        return {"variance": variance, "square": square, "scale": scale}
