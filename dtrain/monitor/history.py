"""What ``metrics.jsonl`` says, in columns: read as the file grows, and thinned for whoever draws it.

Any number in a line is a series under its key, any mapping of names to numbers is a table with a row for that step, so
that a key which is added to the records is there without a change here; `update_to_weight` is a table made of two
others. Invariants: what ``view`` returns is bounded
however long the run is; every value in it is one of the file's, and each extreme of the file is in it.
"""

from __future__ import annotations

import itertools
import os
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtrain.monitor.lines import read_lines

POINTS = 1000
"""About how many points of a series are drawn."""
_ROWS = 400  # of a table that are kept
_CELLS = 60_000  # of a table that are handed out
_RECENT = 40  # lines with phases over which they are summed
_TAIL = 96  # bytes before the position that tell whether the file is still the one that was read
_NO_SERIES = frozenset({"step", "epoch", "loss"})


@dataclass
class Series:
    """One value over the steps; ``lines`` are the numbers of the lines it came from."""

    lines: array[int] = field(default_factory=lambda: array("q"))
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def append(self, line: int, step: int, value: float) -> None:
        self.lines.append(line)
        self.steps.append(step)
        self.values.append(value)

    def thinned(self, since: int, most: int) -> dict[str, list[Any]]:
        """The points after so many lines, about ``most`` of them: `{"step": [...], "value": [...]}`."""
        start = bisect_right(self.lines, since)
        values = np.array(self.values[start:])
        chosen = (start + kept(values, most)).tolist()
        return {"step": [self.steps[i] for i in chosen], "value": [self.values[i] for i in chosen]}


@dataclass
class Table:
    """A value for each of several names over the steps; rows that lie close become one with the largest of each."""

    names: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int, int, list[float]]] = field(default_factory=list)  # last line, first step, values

    def append(self, line: int, step: int, values: dict[str, Any]) -> None:
        for name in values:
            self.names.setdefault(name, len(self.names))
        row = [-float("inf")] * len(self.names)
        for name, value in values.items():
            row[self.names[name]] = float(value)
        self.rows.append((line, step, row))
        if len(self.rows) >= 2 * _ROWS:
            self.rows = _halved(self.rows)

    def thinned(self, since: int) -> dict[str, Any]:
        """`names`, `step` and for each step its `values`; None where a name has none."""
        rows = [row for row in self.rows if row[0] > since]
        while len(rows) > 2 and len(rows) * len(self.names) > _CELLS:
            rows = _halved(rows)
        width = len(self.names)
        absent = -float("inf")
        cells = [[None if v == absent else v for v in row] + [None] * (width - len(row)) for _, _, row in rows]
        return {"names": list(self.names), "step": [step for _, step, _ in rows], "values": cells}


def kept(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Which of the values are drawn: all, or of each of ``most``/2 stretches the smallest, the largest and the first
    that is not finite, and the last of all. At most 1.5 ``most`` + 1, in order."""
    if len(values) <= most:
        return np.arange(len(values))
    bounds = np.linspace(0, len(values), max(1, most // 2) + 1).astype(np.int64)
    is_finite = np.isfinite(values)
    low, high = np.where(is_finite, values, np.inf), np.where(is_finite, values, -np.inf)
    chosen = {len(values) - 1}
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        finite = is_finite[start:stop]
        if finite.any():
            chosen |= {start + int(low[start:stop].argmin()), start + int(high[start:stop].argmax())}
        if not finite.all():
            chosen.add(start + int(finite.argmin()))
    return np.array(sorted(chosen))


class Follower:
    """Reads the lines of a file as it grows. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self._path = path
        self.position = 0
        self._tail = b""

    def rewind(self) -> bool:
        """Go to the start if the file is another one, cut and written anew as a resume does; whether it is."""
        is_another = self.position > 0 and self._bytes_before(self.position) != self._tail
        if is_another:
            self.position = 0
        return is_another

    def lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the lines that were added, each with the byte behind it."""
        for values, position in read_lines(self._path, self.position):
            self.position = position
            yield values, position
        self._tail = self._bytes_before(self.position)

    def _bytes_before(self, position: int) -> bytes:
        try:
            with open(self._path, "rb") as file:
                start = max(0, position - _TAIL)
                return os.pread(file.fileno(), position - start, start)
        except OSError:
            return b""


class History:
    """The columns of one log. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self._follower = Follower(path)
        self._clear()

    def _clear(self) -> None:
        self._ends = array("q")  # the byte behind each line
        self.series: dict[str, Series] = {}
        self.evaluations: dict[str, Series] = {}
        self.tables: dict[str, Table] = {}
        self._phases: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._rates = [Series(), Series()]  # seconds and samples of the steps, summed from the start
        self._sums = [0.0, 0.0]

    @property
    def position(self) -> int:
        """The byte behind the last line that was read."""
        return self._follower.position

    @property
    def lines(self) -> int:
        """How many lines were read."""
        return len(self._ends)

    def lines_until(self, position: int) -> int | None:
        """How many lines end at this byte or before it; None if none ends there, so that the file is another one."""
        if position == 0:
            return 0
        number = bisect_right(self._ends, position)
        return number if number and self._ends[number - 1] == position else None

    def update(self) -> None:
        """Read what was added. A file that was cut or replaced, as a resume does, is read from its start."""
        if self._follower.rewind():
            self._clear()
        for values, position in self._follower.lines():
            self._ends.append(position)
            try:
                self._take(len(self._ends), values)
            except (TypeError, ValueError, KeyError):
                continue  # a line that no dtrain has written

    def _take(self, line: int, values: dict[str, Any]) -> None:
        step = int(values["step"])
        if values.get("type") == "eval":
            for name, value in {"loss": values["loss"], **values["metrics"]}.items():
                self.evaluations.setdefault(name, Series()).append(line, step, float(value))
            return
        if values.get("type") != "step":
            return
        self.series.setdefault("loss", Series()).append(line, step, float(values["loss"]))
        for key, value in values.items():
            if isinstance(value, dict):
                if key == "phases":
                    self._phases.append(value)
                elif all(isinstance(v, int | float | str) for v in value.values()):
                    self.tables.setdefault(key, Table()).append(line, step, value)
            elif key not in _NO_SERIES and (isinstance(value, int | float) or value in _SPELT):
                self.series.setdefault(key, Series()).append(line, step, float(value))
        if "update_norms" in values and "weight_norms" in values:
            moved, sizes = values["update_norms"], values["weight_norms"]
            ratios = {n: float(moved[n]) / float(sizes[n]) for n in moved if n in sizes and float(sizes[n])}
            self.tables.setdefault("update_to_weight", Table()).append(line, step, ratios)
        for number, key in enumerate(("seconds", "samples")):
            self._sums[number] += float(values[key])
            self._rates[number].append(line, step, self._sums[number])

    def view(self, since: int = 0, most: int = POINTS) -> dict[str, Any]:
        """What came after the first ``since`` lines, thinned: plain values, with the byte and the line it reaches to.

        `series` and `evaluations` by name; `tables` by key; `phases`: seconds by worker and phase, summed over the
        last lines that tell them; `rates`: `samples` and `steps` a second over stretches.
        """
        return {
            "position": self.position,
            "lines": self.lines,
            "series": {name: series.thinned(since, most) for name, series in self.series.items()},
            "evaluations": {name: series.thinned(since, most) for name, series in self.evaluations.items()},
            "tables": {name: table.thinned(since) for name, table in self.tables.items()},
            "phases": self._recent_phases(),
            "rates": self._stretches(since, most // 5),
        }

    def _recent_phases(self) -> dict[str, dict[str, float]]:
        sums: dict[str, dict[str, float]] = {}
        for line in self._phases:
            for worker, phases in line.items():
                of_worker = sums.setdefault(worker, {})
                for phase, seconds in phases.items():
                    of_worker[phase] = of_worker.get(phase, 0.0) + float(seconds)
        newest = self._phases[-1] if self._phases else {}
        return {worker: sums[worker] for worker in sorted(newest, key=lambda w: (len(w), w))}

    def _stretches(self, since: int, most: int) -> dict[str, list[Any]]:
        """Samples and steps a second, over stretches of steps of one length."""
        seconds, samples = self._rates
        start = bisect_right(seconds.lines, since)
        count = len(seconds.lines) - start
        marks = np.linspace(start - 1, start - 1 + count, min(most, count) + 1).astype(np.int64).tolist()
        result: dict[str, list[Any]] = {"step": [], "samples": [], "steps": []}
        for a, b in itertools.pairwise(marks):
            took = seconds.values[b] - (seconds.values[a] if a >= 0 else 0.0)
            if took > 0:
                result["step"].append(seconds.steps[b])
                result["samples"].append((samples.values[b] - (samples.values[a] if a >= 0 else 0.0)) / took)
                result["steps"].append((b - a) / took)
        return result


_SPELT = ("NaN", "Infinity", "-Infinity")


def _halved(rows: list[tuple[int, int, list[float]]]) -> list[tuple[int, int, list[float]]]:
    """Make one row of each two, with the larger of each value; nan is larger than any."""
    merged = []
    for (_, step, a), (line, _, b) in zip(rows[::2], rows[1::2], strict=False):
        row = list(b)
        for i, value in enumerate(a):
            if not value <= row[i]:
                row[i] = row[i] if row[i] != row[i] else value
        merged.append((line, step, row))
    return [*merged, *rows[len(merged) * 2 :]]
