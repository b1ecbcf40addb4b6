"""The update of the rows of tables: the rule in the rows that are used, nothing elsewhere, and exactly once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dtrain.comm.layout import BLOCK, TABLE_PARTS, Layout
from dtrain.comm.memory import BLOCKS_DONE, RING, SAMPLED, UPDATE, VALUE, Dimensions, RunMemory
from dtrain.comm.rows import compact, parts_of, used_rows
from dtrain.optim import make_rule
from dtrain.optim.rule import Rule
from dtrain.train.update import Decision, Settings, SliceUpdate
from tests.unit.train.test_update import Death, Mortal, MortalArray, Reaper, state_of

LAYOUT = Layout(
    ("a", "w", "b", "c", "wide"),
    ((900, 4), (500,), (60,), (70, 4), (9, BLOCK // 3)),
    np.dtype(np.float32),
    tables=(0, 2, 3, 4),
)
SHARDS = 3
DECISION = Decision("update", 1.0, 0.5, 64)


def memory_of(rule: Rule) -> RunMemory:
    memory = RunMemory(Dimensions(LAYOUT, rule.state_names, SHARDS, 3))
    random = np.random.default_rng(5)
    memory.parameters[:] = random.standard_normal(LAYOUT.size)
    memory.total[:] = random.standard_normal(LAYOUT.size) * 30
    for name, state in zip(rule.state_names, memory.state, strict=True):
        state[:] = rule.state_init(name)
    for shard in range(SHARDS):
        for number, group in enumerate(LAYOUT.groups):
            rows = np.sort(random.choice(group.rows, group.rows // 3, replace=False))
            memory.row_ids[shard, group.first_row : group.first_row + len(rows)] = rows
            memory.row_counts[shard, number] = len(rows)
    for step in range(3):
        values = rule.coefficients(step, 0.05 / (step + 1))
        memory.coefficients[step % RING, : len(values)] = values
    return memory


def slices_of(ranks: int) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Row, blocks and parts of each rank; the one dense block is the first rank's."""
    return [(r, (0, 1) if r == 0 else (1, 1), parts_of(r, ranks)) for r in range(ranks)]


@pytest.mark.parametrize("clip_value", [None, 0.5])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "adam", "adamw"])
def test_the_rule_acts_on_the_rows_that_are_used_and_on_nothing_else(name: str, clip_value: float | None) -> None:
    rule = make_rule(name)
    chosen = Settings(rule, None, clip_value, "stop")
    before, results = memory_of(rule), set()
    expected = [memory_of(rule).parameters, *memory_of(rule).state]
    for number, group in enumerate(LAYOUT.groups):
        ids = used_rows(before, number, range(SHARDS))
        gradient = compact(before.total, group, len(ids)) * np.float32(DECISION.factor)
        if clip_value is not None:
            gradient = np.clip(gradient, -clip_value, clip_value)
        rows = [group.whole(e)[ids].reshape(-1) for e in expected]
        scratch = np.empty_like(rows[0]), np.empty_like(rows[0])
        rule.update(rows[0], gradient.reshape(-1), tuple(rows[1:]), rule.coefficients(1, 0.05 / 2), scratch)
        for whole, new in zip(expected, rows, strict=True):
            group.whole(whole)[ids] = new.reshape(len(ids), group.width)
    for ranks in (1, 2, 3):
        memory = memory_of(rule)
        for row, blocks, parts in slices_of(ranks):
            SliceUpdate(memory, chosen, row, blocks, parts).run(1, DECISION)
        for new, wanted in zip([memory.parameters, *memory.state], expected, strict=True):
            lo = LAYOUT.groups[0].lo
            assert new[lo:].tobytes() == wanted[lo:].tobytes(), f"{ranks} ranks"
        results.add(state_of(memory))
    assert len(results) == 1
    assert results != {state_of(before)}


class MortalTables(MortalArray):
    """A view of the run's memory in which rows are read and written too."""

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.copyto:
            return super().__array_function__(function, types, args, kwargs)
        if function is not np.take or not isinstance(args[3], MortalTables):
            return function(*(a.view(np.ndarray) if isinstance(a, MortalArray) else a for a in args), **kwargs)
        source, ids, axis, out, mode = args
        source = source.view(np.ndarray)
        out.reaper.write(out.view(np.ndarray), lambda target: np.take(source, ids, axis, target, mode))
        return None

    def __setitem__(self, index: Any, value: Any) -> None:
        plain = self.view(np.ndarray)
        value = np.asarray(value).view(np.ndarray)
        rows = plain[index]

        def write(target: np.ndarray) -> None:
            target[...] = value

        try:
            self.reaper.write(rows, write)
        finally:
            plain[index] = rows


def run_until_death(memory: RunMemory, chosen: Settings, rank: Any, victim: int, torn: float, method: str) -> bool:
    mortal: Any = Mortal(memory, Reaper(victim, torn))
    for name in ("parameters", "state", "undo", "total", "old_rows"):
        view = getattr(memory, name).view(MortalTables)
        view.reaper = mortal.arrived_words._reaper
        setattr(mortal, name, view)
    mortal.row_ids, mortal.row_counts = memory.row_ids, memory.row_counts
    mortal.moved = memory.moved
    try:
        getattr(SliceUpdate(mortal, chosen, *rank), method)(1, DECISION)
    except Death:
        return True
    return False


def copy_of(memory: RunMemory, rule: Rule) -> RunMemory:
    other = memory_of(rule)
    for name in ("parameters", "state", "undo", "total", "arrived", "coefficients", "moved", "old_rows"):
        getattr(other, name)[...] = getattr(memory, name)
    return other


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_death_at_any_write_is_completed_exactly_once(name: str) -> None:
    rule = make_rule(name)
    chosen = Settings(rule, None, None, "stop")
    ranks = slices_of(2)
    start = memory_of(rule)
    start.coefficients[1, SAMPLED] = 1.0
    expected = copy_of(start, rule)
    for rank in ranks:
        SliceUpdate(expected, chosen, *rank).run(1, DECISION)
    victim, died, changed = 0, True, 0
    while died:
        for torn in (0.0, 0.3):
            memory = copy_of(start, rule)
            died = run_until_death(memory, chosen, ranks[0], victim, torn, "run")
            changed += state_of(memory) != state_of(start)
            if victim % 3 == 0:  # who completes it dies too
                run_until_death(memory, chosen, ranks[0], victim // 2, torn, "complete")
            for rank in ranks:
                SliceUpdate(memory, chosen, *rank).complete(1, DECISION)
            assert state_of(memory) == state_of(expected), f"death at write {victim}, {torn:.0%} of it done"
            assert np.array_equal(memory.moved, expected.moved), f"death at write {victim}"
        victim += 1
    tables = slice(LAYOUT.segment_starts[-1], None)
    assert 0 < np.sum(expected.moved[1, UPDATE, tables]) < np.sum(expected.moved[1, VALUE, tables])
    chunks = int(expected.arrived[0, BLOCKS_DONE]) - 1
    assert chunks >= 4
    assert victim > 3 + chunks * (4 + 2 * (1 + len(rule.state_names)))
    assert changed > victim / 2


def test_a_rank_may_have_no_part_of_few_rows() -> None:
    rule = make_rule("sgd")
    memory = memory_of(rule)
    memory.row_counts[...] = 0
    memory.row_counts[0] = 1
    before = state_of(memory)
    for rank in range(TABLE_PARTS):
        SliceUpdate(memory, Settings(rule, None, None, "stop"), 0, (1, 1), (rank, rank + 1)).run(1, DECISION)
    assert state_of(memory) != before
