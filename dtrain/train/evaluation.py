"""One evaluation on the held-out data: its chunks are dealt out to the members, and their sums are added in order."""

from __future__ import annotations

from collections.abc import Mapping

from dtrain.comm.channel import Message
from dtrain.comm.layout import split_evenly
from dtrain.train.events import Evaluate


class Evaluation:
    """Gathers the sums of the chunks of an evaluation. ``chunks`` is how many there are."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._sums: dict[int, dict[str, float]] = {}

    def begin(self, evaluate: Evaluate) -> dict[int, Message]:
        """Forget what was gathered; return what each member is told."""
        self._sums = {}
        parts = split_evenly(self._chunks, len(evaluate.members))
        common = {"type": "evaluate", "generation": evaluate.generation, "step": evaluate.step}
        return {w: common | {"chunks": part} for w, part in zip(evaluate.members, parts, strict=True)}

    def add(self, sums: Mapping[str, dict[str, float]]) -> dict[str, float] | None:
        """Take in the sums of a member's chunks; return the means over all samples once all chunks are there."""
        self._sums.update({int(k): v for k, v in sums.items()})
        return self._means() if sums and len(self._sums) == self._chunks else None

    def _means(self) -> dict[str, float]:
        """Add the chunks' sums in the order of the chunks, so that the figures do not depend on the workers."""
        names = [n for n in self._sums[0] if n != "samples"]
        samples = sum(s["samples"] for s in self._sums.values())
        totals = {n: 0.0 for n in names}
        for chunk in range(self._chunks):
            for name in names:
                totals[name] += self._sums[chunk][name]
        return {n: totals[n] / samples for n in names}
