"""One decision for all ranks, and an update that a death at any point leaves neither half done nor done twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dtrain.comm.layout import BLOCK, Layout
from dtrain.comm.memory import BEATS, BLOCKS_DONE, RING, SAMPLED, UPDATE_STEP, Dimensions, RunMemory
from dtrain.optim import make_rule
from dtrain.optim.rule import Rule
from dtrain.train.update import Decision, Settings, SliceUpdate, decide

VARIANTS: list[tuple[str, dict[str, Any], float | None]] = [
    ("sgd", {}, None),
    ("sgd", {"weight_decay": 0.01}, 0.5),
    ("momentum", {}, None),
    ("momentum", {"lr_in_velocity": True}, None),
    ("nesterov", {"weight_decay": 0.01}, None),
    ("adagrad", {}, None),
    ("adadelta", {}, None),
    ("rmsprop", {}, None),
    ("rmsprop", {"centered": True, "momentum": 0.9}, 0.25),
    ("adam", {}, None),
    ("adamw", {}, None),
]
IDS = [f"{name}-{'-'.join(options)}-{clip}" for name, options, clip in VARIANTS]
BLOCKS = 3
DECISION = Decision("update", 1.0, 0.5, 64)

# --- the decision ----------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> Settings:
    return replace(Settings(make_rule("sgd"), None, None, "stop"), **changes)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_the_norm_is_that_of_the_mean_gradient() -> None:
    assert decide(settings(), array(9.0, 16.0), array(1.0), 10) == Decision("update", 0.5, 1.0, 10)


def test_a_long_gradient_is_scaled_to_clip_norm() -> None:
    decision = decide(settings(clip_norm=0.25), array(9.0, 16.0), array(1.0), 10)
    assert decision.clip == 0.25 / (0.5 + 1e-6)
    assert decision.factor == decision.clip / 10
    assert decision.norm == 0.5  # the figure is the one before clipping


def test_a_short_gradient_is_left_alone() -> None:
    assert decide(settings(clip_norm=2.0), array(9.0, 16.0), array(1.0), 10) == Decision("update", 0.5, 1.0, 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["squares", "losses"])
@pytest.mark.parametrize("action", ["stop", "skip"])
def test_what_is_not_finite_stops_or_skips(bad: float, where: str, action: str) -> None:
    values = {"squares": array(1.0, 2.0), "losses": array(0.5, 0.25)}
    values[where][1] = bad
    decision = decide(settings(on_nonfinite=action, clip_norm=1.0), values["squares"], values["losses"], 8)
    assert decision.action == action
    assert math.isnan(decision.norm)
    assert decision.factor == 0.0


def test_the_norm_does_not_depend_on_the_order_of_segments() -> None:
    values = np.random.default_rng(0).random(501) * 10.0 ** np.random.default_rng(1).integers(-12, 12, 501)
    norms = {decide(settings(), np.random.default_rng(s).permutation(values), array(0), 7).norm for s in range(20)}
    assert len(norms) == 1


def test_a_norm_beyond_the_largest_float64_is_not_finite() -> None:
    """In float64 each segment may be finite and their sum not."""
    assert decide(settings(), array(1.5e308, 1.5e308), array(0.0), 8).action == "stop"
    assert decide(settings(on_nonfinite="skip", clip_norm=1.0), array(1.5e308, 1.5e308), array(0.0), 8).action == "skip"


def test_a_model_without_elements_has_norm_zero() -> None:
    assert decide(settings(clip_norm=1.0), array(), array(0.5), 8) == Decision("update", 0.0, 1.0, 8)


# --- the update ------------------------------------------------------------------------------------------------------


def memory_of(rule: Rule, dtype: type = np.float32, steps: int = 3, is_running: bool = False) -> RunMemory:
    layout = Layout(("w", "b"), ((BLOCK + 200,), ((BLOCKS - 1) * BLOCK - 300,)), np.dtype(dtype))
    if is_running:  # a block of parameters, then two of running values
        shapes = ((300,), (BLOCK - 100,), (BLOCK + 500,))
        layout = Layout(("mean", "w", "var"), shapes, np.dtype(dtype), ((0, 0.1), (2, 0.25)))
    assert layout.blocks == BLOCKS
    memory = RunMemory(Dimensions(layout, rule.state_names, shards=1, max_workers=3))
    random = np.random.default_rng(5)
    memory.parameters[:] = random.standard_normal(layout.size)
    memory.total[:] = random.standard_normal(layout.size) * 30
    for name, state in zip(rule.state_names, memory.state, strict=True):
        state[:] = rule.state_init(name)
    for step in range(steps):
        values = rule.coefficients(step, 0.05 / (step + 1))
        memory.coefficients[step % RING, : len(values)] = values
    memory.coefficients[1, SAMPLED] = 1
    return memory


def state_of(memory: RunMemory) -> bytes:
    return memory.parameters.tobytes() + memory.state.tobytes()


def with_norms(memory: RunMemory) -> bytes:
    return state_of(memory) + memory.moved[:3].tobytes()


@pytest.mark.parametrize("is_running", [False, True])
def test_at_a_sampled_step_norms_of_values_and_changes_are_written_down(is_running: bool) -> None:
    rule, found = make_rule("momentum"), set()
    for slices in ([(0, 3)], [(0, 1), (1, 3)], [(2, 3), (1, 1), (0, 2)]):
        memory = memory_of(rule, is_running=is_running)
        layout = memory.dimensions.layout
        for step in range(3):
            old = [view.astype(np.float64) for view in layout.views(memory.parameters)]
            for row, blocks in enumerate(slices):
                SliceUpdate(memory, settings(rule=rule), row, blocks).run(step, DECISION)
            for index, (before, now) in enumerate(zip(old, layout.views(memory.parameters), strict=True)):
                own = [i for i, parameter in enumerate(layout.segment_parameters) if parameter == index]
                sums = memory.moved[step][:, own].sum(axis=1)
                if step == 1 and index not in layout.momenta:
                    wide = now.astype(np.float64)
                    np.testing.assert_allclose(sums, [np.sum(wide**2), np.sum((wide - before) ** 2)], rtol=1e-5)
                else:
                    assert not sums.any()
        found.add(with_norms(memory))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options", "clip_value"), VARIANTS, ids=IDS)
def test_any_cut_into_slices_is_the_rule_over_the_whole(
    name: str, options: dict[str, Any], clip_value: float | None, dtype: type
) -> None:
    rule = make_rule(name, **options)
    chosen = settings(rule=rule, clip_value=clip_value)
    plain = memory_of(rule, dtype)
    with np.errstate(all="ignore"):
        for step in range(3):
            gradient = plain.total * np.dtype(dtype).type(DECISION.factor)
            if clip_value is not None:
                gradient = np.clip(gradient, -clip_value, clip_value)
            scratch = np.empty_like(gradient), np.empty_like(gradient)
            coefficients = rule.coefficients(step, 0.05 / (step + 1))
            rule.update(plain.parameters, gradient, tuple(plain.state), coefficients, scratch)
        for slices in ([(0, 3)], [(0, 1), (1, 3)], [(2, 3), (1, 1), (0, 2)]):
            memory = memory_of(rule, dtype)
            total = memory.total.tobytes()
            for step in range(3):
                for row, blocks in enumerate(slices):
                    SliceUpdate(memory, chosen, row, blocks).run(step, DECISION)
            assert state_of(memory) == state_of(plain)
            assert memory.total.tobytes() == total  # whoever completes the step reads it again


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_running_values_are_folded_whatever_the_rule_and_the_clipping(name: str, dtype: type) -> None:
    rule = make_rule(name, weight_decay=0.5)
    plain, kind = memory_of(rule, dtype, is_running=True), np.dtype(dtype).type
    layout = plain.dimensions.layout
    before, initial = layout.views(plain.parameters), plain.state.copy()
    expected = [
        (1 - momentum) * before[i].astype(np.float64) + momentum * layout.views(plain.total)[i].astype(np.float64) / 64
        for i, momentum in layout.running
    ]
    results = set()
    for slices in ([(0, 3)], [(0, 1), (1, 2), (2, 3)], [(2, 3), (0, 2)]):
        memory = memory_of(rule, dtype, is_running=True)
        for row, blocks in enumerate(slices):
            SliceUpdate(memory, settings(rule=rule, clip_value=1e-3), row, blocks).run(0, DECISION)
        results.add(state_of(memory))
        views = layout.views(memory.parameters)
        for (index, momentum), values in zip(layout.running, expected, strict=True):
            np.testing.assert_allclose(views[index], values, rtol=20 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
            mean = layout.views(memory.total)[index] / kind(64)
            exact = before[index] * kind(1 - momentum) + mean * kind(momentum)
            assert views[index].tobytes() == exact.tobytes()  # each operation is rounded once
        assert not np.array_equal(views[1], before[1])
        for old, new in zip(initial, memory.state, strict=True):
            for index, _ in layout.running:
                assert np.array_equal(layout.views(new)[index], layout.views(old)[index])
    assert len(results) == 1


def test_progress_is_recorded_in_the_ranks_own_row() -> None:
    rule = make_rule("sgd")
    memory = memory_of(rule)
    SliceUpdate(memory, settings(rule=rule), 1, (1, 3)).run(2, DECISION)
    row = memory.arrived[1]
    assert (row[UPDATE_STEP], row[BLOCKS_DONE], row[BEATS]) == (3, 3, 2)
    assert not memory.arrived[0].any()
    assert not memory.arrived[2].any()


# --- a death at every point ------------------------------------------------------------------------------------------


class Death(Exception):
    """What stands for SIGKILL: nothing is done after it."""


class Reaper:
    """Counts the elementary writes to the run's memory, and ends the writer in the middle of the chosen one."""

    def __init__(self, victim: int, torn: float) -> None:
        self.writes, self._victim, self._torn = 0, victim, torn

    def write(self, target: np.ndarray, write: Callable[[np.ndarray], Any]) -> None:
        """Do ``write`` to ``target``; of the chosen write only the first part reaches the memory."""
        if self.writes == self._victim:
            whole = target.copy()
            write(whole)
            part = int(len(target) * self._torn)
            target[:part] = whole[:part]
            raise Death
        self.writes += 1
        write(target)

    def word(self) -> None:
        if self.writes == self._victim:
            raise Death
        self.writes += 1


class MortalArray(np.ndarray):
    """A view of the run's memory whose every write passes by the reaper."""

    reaper: Reaper

    def __array_finalize__(self, other: Any) -> None:
        if isinstance(other, MortalArray):
            self.reaper = other.reaper

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        (out,) = options.pop("out", (None,))
        arrays = [i.view(np.ndarray) if isinstance(i, MortalArray) else i for i in inputs]
        if not isinstance(out, MortalArray):
            return getattr(ufunc, method)(*arrays, out=out, **options)
        plain = out.view(np.ndarray)

        def write(target: np.ndarray) -> None:
            aliased = [target if a is not None and np.shares_memory(a, plain) else a for a in arrays]
            getattr(ufunc, method)(*aliased, out=target, **options)

        out.reaper.write(plain, write)
        return out

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.dot:
            return np.dot(*(a.view(np.ndarray) for a in args))
        assert function is np.copyto, f"{function} is not expected in an update"
        target, source = (a.view(np.ndarray) if isinstance(a, MortalArray) else a for a in args)
        if isinstance(args[0], MortalArray):
            args[0].reaper.write(target, lambda t: np.copyto(t, source))
        else:
            np.copyto(target, source)
        return None


class MortalWords:
    """The words of the ranks, each of which is written whole or not at all."""

    def __init__(self, words: memoryview, reaper: Reaper) -> None:
        self._words, self._reaper = words, reaper

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._reaper.word()
        self._words[index] = value


class Mortal:
    """The run's memory as a rank sees it that will die at one of its writes."""

    def __init__(self, memory: RunMemory, reaper: Reaper) -> None:
        self.dimensions, self.coefficients, self.moved = memory.dimensions, memory.coefficients, memory.moved
        self.arrived_words = MortalWords(memory.arrived_words, reaper)
        for name in ("parameters", "state", "undo", "total"):
            view = getattr(memory, name).view(MortalArray)
            view.reaper = reaper
            setattr(self, name, view)


def run_until_death(
    memory: RunMemory, chosen: Settings, row: int, blocks: tuple[int, int], victim: int, torn: float, method: str
) -> bool:
    """Whether the rank died before the end."""
    mortal: Any = Mortal(memory, Reaper(victim, torn))
    try:
        getattr(SliceUpdate(mortal, chosen, row, blocks), method)(1, DECISION)
    except Death:
        return True
    return False


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("cut", [1, 2])  # a slice of one block begins with the block that it ended with
@pytest.mark.parametrize(("name", "options", "clip_value"), VARIANTS, ids=IDS)
def test_a_death_at_any_write_is_completed_exactly_once(
    name: str, options: dict[str, Any], clip_value: float | None, cut: int, is_running: bool
) -> None:
    rule = make_rule(name, **options)
    chosen = settings(rule=rule, clip_value=clip_value)
    slices = [(0, cut), (cut, BLOCKS)]
    start = memory_of(rule, is_running=is_running)
    for row, blocks in enumerate(slices):
        SliceUpdate(start, chosen, row, blocks).run(0, DECISION)
    expected = copy_of(start, rule)
    for row, blocks in enumerate(slices):
        SliceUpdate(expected, chosen, row, blocks).run(1, DECISION)
    assert state_of(expected) != state_of(start)
    victim, died, changed = 0, True, 0
    while died:
        for torn in (0.0, 0.3):
            memory = copy_of(start, rule)
            if victim % 2:  # the other rank may be at its end, or not have begun
                SliceUpdate(memory, chosen, 0, slices[0]).run(1, DECISION)
            died = run_until_death(memory, chosen, 1, slices[1], victim, torn, "run")
            changed += state_of(memory) not in (state_of(start), state_of(expected))
            for row, blocks in enumerate(slices):
                SliceUpdate(memory, chosen, row, blocks).complete(1, DECISION)
            assert with_norms(memory) == with_norms(expected), f"death at write {victim}, {torn:.0%} of it done"
        victim += 1
    assert victim > 3 + (BLOCKS - cut) * (4 + (0 if is_running else len(rule.state_names)))
    assert changed > victim / 2  # most deaths did leave a half-done update behind


def test_completing_may_itself_be_interrupted() -> None:
    rule = make_rule("adam")
    chosen = settings(rule=rule)
    start = memory_of(rule)
    expected = copy_of(start, rule)
    SliceUpdate(expected, chosen, 0, (0, 3)).run(1, DECISION)
    for first in range(0, 60, 7):
        died, second = True, 0
        while died:
            memory = copy_of(start, rule)
            run_until_death(memory, chosen, 0, (0, 3), first, 0.5, "run")
            died = run_until_death(memory, chosen, 0, (0, 3), second, 0.5, "complete")
            SliceUpdate(memory, chosen, 0, (0, 3)).complete(1, DECISION)
            assert with_norms(memory) == with_norms(expected), f"deaths at writes {first} and {second}"
            second += 1


def copy_of(memory: RunMemory, rule: Rule) -> RunMemory:
    other = memory_of(rule, is_running=bool(memory.dimensions.layout.running))
    for name in ("parameters", "state", "undo", "total", "arrived", "coefficients"):
        getattr(other, name)[...] = getattr(memory, name)
    return other
