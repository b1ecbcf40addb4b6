"""A shard's bits depend on (seed, step, shard) alone, and a worker does what its line and the run's memory tell it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dtrain.comm.channel import Channel, ChannelClosed, Message, channel_pair
from dtrain.comm.memory import ARRIVED, GRADIENTS, GRANTED, HALT, PHASES, RING, SAMPLED, SUMMED, UPDATED, RunMemory
from dtrain.comm.threads import one_blas_thread
from dtrain.errors import InputError, ShapeError
from dtrain.nn import dropout
from dtrain.optim import make_rule, make_schedule
from dtrain.train.program import Program, dimensions
from dtrain.train.shard import EVAL_CHUNK, ShardRunner, eval_chunks
from dtrain.train.update import Settings
from dtrain.train.worker import Member, Worker

SAMPLES, FEATURES, CLASSES = 75, 6, 3
JOIN_SECONDS = 60.0
Maker = Callable[..., Program]


def init(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "w": rng.standard_normal((FEATURES, CLASSES)).astype(np.float32),
        "unused": np.ones(5, np.float32),
        "b": np.zeros(CLASSES, np.float32),
    }


def loss(params: Any, batch: Any) -> Any:
    difference = batch["x"] @ params["w"] + params["b"] - batch["t"]
    return np.sum(difference * difference, axis=1)


def mean_loss(params: Any, batch: Any) -> Any:
    return np.mean(loss(params, batch))


def dropout_loss(params: Any, batch: Any) -> Any:
    return loss(params, {"x": dropout(batch["x"], 0.5), "t": batch["t"]})


def program(**changes: Any) -> Program:
    random = np.random.default_rng(4)
    data = {
        "x": random.standard_normal((SAMPLES, FEATURES)).astype(np.float32),
        "t": random.standard_normal((SAMPLES, CLASSES)).astype(np.float32),
    }
    held_out = {key: np.repeat(array, 9, axis=0)[: 2 * EVAL_CHUNK + 44] for key, array in data.items()}
    values: dict[str, Any] = {
        "init": init,
        "loss": loss,
        "metrics": lambda params, batch: {"size": np.sum(np.abs(batch["x"]), axis=1)},
        "train": data,
        "eval": held_out,
        "rule": make_rule("momentum"),
        "schedule": make_schedule("constant", lr=0.01, total_steps=1000),
        "seed": 11,
        "batch": 32,  # an epoch has two batches of 32 and one of 11
        "shards": 4,
        "steps": 1000,
    }
    return Program(**{**values, **changes})


def memory_of(p: Program) -> RunMemory:
    parameters = p.initial_parameters()
    layout = p.layout(parameters)
    memory = RunMemory(dimensions(p, layout, 4))
    for view, name in zip(layout.views(memory.parameters), layout.names, strict=True):
        view[...] = parameters[name]
    for step in range(20):
        values = p.rule.coefficients(step, p.schedule.lr(step))
        memory.coefficients[step, : len(values)] = values
    return memory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_blas_thread():
        yield


# --- a shard ---------------------------------------------------------------------------------------------------------


def run_shard(runner: ShardRunner, step: int, shard: int) -> tuple[float, bytes]:
    signature = runner.gather(step, shard)
    signature.bind(shard).run()
    return float(signature.loss), runner.memory.gradients[shard].tobytes()


@pytest.mark.parametrize("chosen", [loss, mean_loss, dropout_loss], ids=["per sample", "mean", "dropout"])
def test_a_shard_has_the_same_bits_whatever_was_run_before(chosen: Any) -> None:
    p = program(loss=chosen)
    places = [(step, shard) for step in range(4) for shard in range(4)]
    in_order = ShardRunner(p, memory_of(p))
    expected = {place: run_shard(in_order, *place) for place in places}
    assert len({bits for _, bits in expected.values()}) == len(places)
    backwards = ShardRunner(p, memory_of(p))
    assert {place: run_shard(backwards, *place) for place in reversed(places)} == expected
    for place in [(2, 3), (3, 0)]:
        assert run_shard(ShardRunner(p, memory_of(p)), *place) == expected[place]


@pytest.mark.parametrize("chosen", [loss, mean_loss], ids=["per sample", "mean"])
@pytest.mark.parametrize("step", [0, 2])  # step 2 has a ragged batch: 11 samples over 4 shards
def test_the_shards_add_up_to_the_gradient_of_the_whole_batch(chosen: Any, step: int) -> None:
    p = program(loss=chosen)
    memory = memory_of(p)
    runner = ShardRunner(p, memory)
    total_loss = sum(run_shard(runner, step, shard)[0] for shard in range(4))
    indices = np.concatenate([p.sampler().indices(step, shard) for shard in range(4)])
    assert len(indices) == p.sampler().batch_size(step) == (11 if step == 2 else 32)
    x, t = (p.train[key][indices].astype(np.float64) for key in ("x", "t"))
    difference = x @ p.initial_parameters()["w"] - t
    assert total_loss == pytest.approx(float((difference**2).sum()), rel=1e-5)
    names = memory.dimensions.layout.names
    views = dict(zip(names, memory.dimensions.layout.views(memory.gradients.sum(axis=0)), strict=True))
    np.testing.assert_allclose(views["w"], 2 * x.T @ difference, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(views["b"], 2 * difference.sum(axis=0), rtol=2e-4, atol=1e-4)


def test_old_content_of_a_gradient_buffer_does_not_show() -> None:
    p = program()
    memory = memory_of(p)
    runner = ShardRunner(p, memory)
    clean = run_shard(runner, 0, 1)
    for view in memory.dimensions.layout.views(memory.gradients[1]):
        view[...] = np.nan
    assert run_shard(runner, 0, 1) == clean
    unused = dict(zip(memory.dimensions.layout.names, memory.dimensions.layout.views(memory.gradients[1]), strict=True))
    assert not unused["unused"].any()


def test_a_shard_changes_nothing_but_its_own_gradient() -> None:
    p = program()
    memory = memory_of(p)
    memory.gradients[:] = 7
    parameters, state = memory.parameters.tobytes(), memory.state.tobytes()
    run_shard(ShardRunner(p, memory), 1, 2)
    assert (memory.gradients[[0, 1, 3]] == 7).all()
    assert (memory.parameters.tobytes(), memory.state.tobytes()) == (parameters, state)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda params, batch: np.float32(1.0), InputError, "does not depend on"),
        (lambda params, batch: np.argmax(params["w"], axis=0), InputError, "expected float values, got int64"),
        (lambda params, batch: params["w"], ShapeError, r"\(8,\) or a scalar, got shape \(6, 3\)"),
    ],
)
def test_a_loss_of_the_wrong_kind_is_refused(wrong: Any, error: type[Exception], words: str) -> None:
    p = program(loss=wrong)
    with pytest.raises(error, match=words):
        ShardRunner(p, memory_of(p)).gather(0, 0)


def test_chunks_of_an_evaluation_add_up() -> None:
    p = program()
    runner = ShardRunner(p, memory_of(p))
    chunks = [runner.evaluate(chunk) for chunk in range(eval_chunks(p))]
    assert [c["samples"] for c in chunks] == [EVAL_CHUNK, EVAL_CHUNK, 44]
    assert sum(c["size"] for c in chunks) == pytest.approx(float(np.abs(p.eval["x"]).sum()), rel=1e-5)
    assert runner.evaluate(1) == chunks[1]
    assert eval_chunks(replace(p, eval={})) == 0


def test_dropout_is_off_in_an_evaluation() -> None:
    plain, dropped = program(), program(loss=dropout_loss)
    first = ShardRunner(plain, memory_of(plain)).evaluate(0)
    assert ShardRunner(dropped, memory_of(dropped)).evaluate(0) == first


def test_a_metric_of_the_wrong_shape_is_refused() -> None:
    p = program(metrics=lambda params, batch: {"accuracy": np.ones((3, 2))})
    with pytest.raises(ShapeError, match=r"metrics\['accuracy'\]: expected a value per sample \(256,\)"):
        ShardRunner(p, memory_of(p)).evaluate(0)


# --- a worker --------------------------------------------------------------------------------------------------------


class Line:
    """The coordinator's end of the line to a worker in a thread of this process."""

    def __init__(self, p: Program, memory: RunMemory) -> None:
        self.channel, there = channel_pair()
        self._there = Channel(there)
        self.thread = threading.Thread(target=self._run, args=(p, memory), daemon=True)
        self.thread.start()

    def _run(self, p: Program, memory: RunMemory) -> None:
        try:
            Worker(self._there).run(lambda: (p, memory))
        finally:
            self._there.close()

    def send(self, **message: Any) -> None:
        self.channel.send(message)

    def receive(self, kind: str | None = None) -> Message:
        """The next message; rank 0 also says that it is idle, which is passed over unless asked for."""
        while True:
            message = self.channel.receive(JOIN_SECONDS)
            assert message is not None, "the worker says nothing"
            if message["type"] != "idle" or kind == "idle":
                return message

    def close(self) -> None:
        self.channel.close()
        self.thread.join(JOIN_SECONDS)
        assert not self.thread.is_alive(), "the worker does not end"


@contextmanager
def workers(p: Program, memory: RunMemory, count: int) -> Iterator[list[Line]]:
    lines = [Line(p, memory) for _ in range(count)]
    for line in lines:
        assert line.receive()["type"] == "joined"
    try:
        yield lines
    finally:
        memory.header[HALT] = 2**62
        for line in lines:
            line.close()


def begin(lines: list[Line], generation: int, step: int, shards: int = 4, **changes: Any) -> None:
    for rank, line in enumerate(lines):
        run = (shards * rank // len(lines), shards * (rank + 1) // len(lines))
        message = {
            "type": "begin",
            "generation": generation,
            "step": step,
            "rank": rank,
            "world_size": len(lines),
            "first": list(range(*run)),
            "run": run,
        }
        line.send(**{**message, **changes})


def wait_for(memory: RunMemory, count: int, value: int) -> None:
    """Wait until the first ranks have come that far."""
    deadline = threading.Event()
    timer = threading.Timer(JOIN_SECONDS, deadline.set)
    timer.start()
    while memory.arrived[:count, ARRIVED].min() < value:
        assert not deadline.is_set(), f"the ranks came to {memory.arrived[:count, ARRIVED]}"
    timer.cancel()


def trained(p: Program, count: int, steps: int) -> bytes:
    memory = memory_of(p)
    with workers(p, memory, count) as lines:
        begin(lines, 1, 0)
        memory.header[GRANTED] = steps
        wait_for(memory, count, 4 * (steps - 1) + UPDATED)
    return memory.parameters.tobytes() + memory.state.tobytes()


@pytest.mark.parametrize("options", [{}, {"loss": dropout_loss, "clip_norm": 0.5}, {"batch": 3, "shards": 4}])
def test_any_number_of_workers_trains_the_same_bits(options: dict[str, Any]) -> None:
    p = program(**options)
    alone = trained(p, 1, 7)
    assert alone != trained(p, 1, 6)
    assert trained(p, 2, 7) == alone
    assert trained(p, 3, 7) == alone


def test_a_worker_runs_what_is_granted_and_no_more() -> None:
    p = program()
    memory = memory_of(p)
    with workers(p, memory, 1) as (line,):
        begin([line], 1, 0)
        for step in (2, 5):
            memory.header[GRANTED] = step
            line.send(type="go")
            wait_for(memory, 1, 4 * (step - 1) + UPDATED)
            line.send(type="evaluate", generation=1, step=step, chunks=(0, 1))  # it answers when it is idle
            assert line.receive()["type"] == "evaluated"
            assert memory.arrived[0, ARRIVED] == 4 * (step - 1) + UPDATED
        assert memory.shard_done.tolist() == [5, 5, 5, 5]


def test_rank_0_says_that_it_is_idle() -> None:
    p = program()
    memory = memory_of(p)
    with workers(p, memory, 2) as lines:
        begin(lines, 1, 0)
        assert lines[0].receive("idle") == {"type": "idle"}
        memory.header[GRANTED] = 3
        assert lines[0].receive("idle") == {"type": "idle"}  # a grant without a word is found, too
        assert memory.arrived[0, ARRIVED] == 4 * 2 + UPDATED


def test_in_its_first_step_a_worker_runs_what_is_missing() -> None:
    p = program()
    memory = memory_of(p)
    memory.gradients[:] = 0
    memory.losses[0, :] = 1.0
    with workers(p, memory, 1) as (line,):
        begin([line], 1, 0, first=[2], run=(0, 4))
        memory.header[GRANTED] = 1
        wait_for(memory, 1, UPDATED)
        assert memory.shard_done.tolist() == [0, 0, 1, 0]
        assert not memory.gradients[[0, 1, 3]].any()
        assert memory.gradients[2].any()
        memory.header[GRANTED] = 2
        line.send(type="go")
        wait_for(memory, 1, 4 + UPDATED)
    assert memory.shard_done.tolist() == [2, 2, 2, 2]


def test_an_evaluation_reports_the_sums_of_its_chunks() -> None:
    p = program()
    memory = memory_of(p)
    expected = {str(chunk): ShardRunner(p, memory).evaluate(chunk) for chunk in (1, 2)}
    with workers(p, memory, 1) as (line,):
        begin([line], 4, 0)
        line.send(type="evaluate", generation=4, step=0, chunks=(1, 3))
        assert line.receive() == {"type": "evaluated", "generation": 4, "step": 0, "sums": expected}


def test_a_halted_worker_says_so_and_serves_the_next_generation() -> None:
    p = program()
    memory = memory_of(p)
    with workers(p, memory, 2) as lines:
        begin(lines[:1], 1, 0, world_size=2, run=(0, 2), first=[0, 1])  # the other one never comes
        memory.header[GRANTED] = 9
        wait_for(memory, 1, GRADIENTS)
        memory.header[HALT] = 1
        assert lines[0].receive() == {"type": "halted", "generation": 1}
        assert memory.arrived[0, ARRIVED] == GRADIENTS
        assert memory.shard_done.tolist() == [1, 1, 0, 0]
        begin(lines[::-1], 2, 0)
        wait_for(memory, 2, 4 * 8 + UPDATED)
    assert memory.parameters.tobytes() + memory.state.tobytes() == trained(p, 1, 9)


def test_a_grant_to_a_later_generation_is_no_grant_to_this_one() -> None:
    p = program()
    memory = memory_of(p)
    memory.header[HALT], memory.header[GRANTED] = 3, 5
    with workers(p, memory, 1) as (line,):
        begin([line], 3, 0)
        assert line.receive() == {"type": "halted", "generation": 3}
    assert not memory.shard_done.any()
    assert not memory.arrived.any()


def test_a_new_generation_at_a_boundary_needs_no_halt() -> None:
    p = program()
    memory = memory_of(p)
    with workers(p, memory, 1) as (line,):
        begin([line], 1, 0)
        begin([line], 2, 0)
        memory.header[GRANTED] = 1
        wait_for(memory, 1, UPDATED)


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_gradient_that_is_not_finite_stops_or_skips(action: str) -> None:
    p = program(on_nonfinite=action)
    memory = memory_of(p)
    memory.parameters[0] = np.inf
    before = memory.parameters.tobytes()
    with workers(p, memory, 1) as (line,):
        begin([line], 1, 0)
        memory.header[GRANTED] = 2
        if action == "stop":
            assert line.receive() == {"type": "nonfinite", "step": 0, "generation": 1}
            assert memory.arrived[0, ARRIVED] == SUMMED
        else:
            wait_for(memory, 1, 4 + UPDATED)
    assert memory.parameters.tobytes() == before


def test_an_error_of_the_model_is_reported_with_its_line() -> None:
    def wrong(params: Any, batch: Any) -> Any:
        return np.sum(params["w"] @ batch["x"])

    p = program(loss=wrong)
    memory = memory_of(p)
    with workers(p, memory, 1) as (line,):
        begin([line], 1, 0)
        memory.header[GRANTED] = 1
        report = line.receive()
        assert (report["type"], report["exit_code"]) == ("failed", 2)
        assert "test_worker_shard.py" in report["error"]
        assert "(6, 3)" in report["error"]
        assert "Traceback" in report["stack"]


def test_a_job_that_cannot_be_made_is_reported() -> None:
    channel, there = channel_pair()

    def prepare() -> tuple[Program, RunMemory]:
        raise InputError("my_model.py: no such file; write its path")

    other = Channel(there)
    thread = threading.Thread(target=Worker(other).run, args=(prepare,), daemon=True)
    thread.start()
    report = channel.receive(JOIN_SECONDS)
    assert report is not None
    assert (report["type"], report["error"]) == ("failed", "my_model.py: no such file; write its path")
    channel.close()
    thread.join(JOIN_SECONDS)
    assert not thread.is_alive()
    other.close()


def test_a_worker_ends_when_told_to() -> None:
    p = program()
    line = Line(p, memory_of(p))
    assert line.receive()["type"] == "joined"
    line.send(type="stop")
    line.thread.join(JOIN_SECONDS)
    assert not line.thread.is_alive()
    with pytest.raises(ChannelClosed):
        line.channel.receive()
    line.close()


def test_a_worker_ends_when_the_coordinator_is_gone() -> None:
    p = program()
    memory = memory_of(p)
    idle, waiting = Line(p, memory), Line(p, memory)
    for line in (idle, waiting):
        line.receive()
    begin([waiting], 1, 0, world_size=2, run=(0, 2), first=[0, 1])  # it waits for the other in a barrier
    memory.header[GRANTED] = 1
    wait_for(memory, 1, GRADIENTS)
    idle.close()
    waiting.close()


def test_figures_of_a_step_lie_in_its_place_of_the_ring() -> None:
    p = program()
    memory = memory_of(p)
    start = RING - 1
    memory.coefficients[start] = memory.coefficients[0]
    memory.arrived[:, ARRIVED] = 4 * start
    with workers(p, memory, 1) as (line,):
        begin([line], 1, start)
        memory.header[GRANTED] = start + 2
        wait_for(memory, 1, 4 * (start + 1) + UPDATED)
    for slot in (start, 0):
        assert memory.losses[slot].all()
        assert memory.squares[slot].any()
        assert (memory.phases[slot, 0, : PHASES.index("sum")] > 0).all()
    assert not memory.losses[1:start].any()


def test_the_squared_norm_of_each_shards_gradient_is_written_down_at_sampled_steps() -> None:
    p = program()
    memory = memory_of(p)
    memory.coefficients[1, SAMPLED] = 1
    with workers(p, memory, 1) as (line,):
        begin([line], 1, 0)
        memory.header[GRANTED] = 2
        wait_for(memory, 1, 4 + UPDATED)
    expected = np.sum(memory.gradients.astype(np.float64) ** 2, axis=1)
    assert expected.all()
    np.testing.assert_allclose(memory.shard_squares[1], expected, rtol=1e-5)
    assert not memory.shard_squares[0].any()


def test_a_message_that_is_read_in_a_barrier_is_not_lost() -> None:
    p = program()
    memory = memory_of(p)
    channel, there = channel_pair()
    other = Channel(there)
    worker = Worker(other)
    worker.memory, worker.shards = memory, ShardRunner(p, memory)
    worker.settings = Settings(p.rule, p.clip_norm, p.clip_value, p.on_nonfinite)
    member = Member(worker, {"generation": 1, "rank": 0, "world_size": 1, "run": (0, 4)})
    channel.send({"type": "evaluate", "generation": 1, "step": 0, "chunks": (0, 1)})
    worker.check_coordinator()  # as in a long wait for the last barrier of a step
    channel.send({"type": "begin", "generation": 2})
    assert worker._wait_for_grant(member, 0) is False
    answers = [channel.receive(timeout_seconds=0) for _ in range(2)]
    channel.close()
    other.close()
    assert [answer and answer["type"] for answer in answers] == ["idle", "evaluated"]
