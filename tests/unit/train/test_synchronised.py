"""Losses that sum over the shards in their middle: PyTorch over the whole batch is the oracle, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import dtrain
from dtrain import nn
from dtrain.comm.memory import BEATS, WAITS, RunMemory
from dtrain.comm.threads import one_blas_thread
from dtrain.data.sampler import Sampler
from dtrain.errors import InputError, NonFiniteError, TraceError
from dtrain.graph import Graph, draw, grad, jacobian, step_context
from dtrain.graph.tensor import recording
from dtrain.optim import make_rule, make_schedule
from dtrain.train.introspection import introspect, shard_graph
from dtrain.train.program import Program, dimensions
from dtrain.train.shard import ShardRunner
from dtrain.train.together import Together

SAMPLES, SIDE, CHANNELS, LR = 44, 3, 4, 0.01
RANDOM = np.random.default_rng(12)
DATA = {"x": RANDOM.standard_normal((SAMPLES, 2, SIDE, SIDE)) * 2 + 1, "t": RANDOM.standard_normal((SAMPLES, 3))}
STATISTICS = ("gamma2", "beta2", "mean2", "var2")
LEARNT = ("w", "gamma", "beta", "v", "gamma2", "beta2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_blas_thread():
        yield


def init(rng: np.random.Generator | None = None) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "w": random.standard_normal((CHANNELS, 2)),
        "gamma": random.uniform(0.5, 2, CHANNELS),
        "beta": random.standard_normal(CHANNELS),
        "mean": nn.running(np.zeros(CHANNELS)),
        "var": nn.running(np.ones(CHANNELS), momentum=0.25),
        "v": random.standard_normal((CHANNELS * SIDE * SIDE, 3)),
        "gamma2": random.uniform(0.5, 2, 3),
        "beta2": random.standard_normal(3),
        "mean2": nn.running(np.zeros(3)),
        "var2": nn.running(np.ones(3)),
    }


def loss(params: Any, batch: Any, synchronised: bool = True) -> Any:
    """Two norms, one of images, one of features; the first one's gradient comes through the second one."""
    p = params
    x = np.einsum("nchw,kc->nkhw", batch["x"], p["w"])
    x = nn.batch_norm(x, p["gamma"], p["beta"], p["mean"], p["var"], axis=(0, 2, 3), synchronised=synchronised)
    x = np.reshape(np.tanh(x), (x.shape[0], -1)) @ p["v"]
    x = nn.batch_norm(x, p["gamma2"], p["beta2"], p["mean2"], p["var2"], synchronised=synchronised)
    return np.sum((x - batch["t"]) ** 2, axis=1)


def fit(chosen: Any = loss, params: Any = init, **options: Any) -> Any:
    given = {"batch": 16, "shards": 3, "steps": 5, "optimizer": "sgd", "lr": LR, "dtype": "float64", "workers": 0}
    return dtrain.fit(chosen, params, DATA, progress=False, **{**given, **options})


def torch_training(batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Train with PyTorch, whose batch norm takes each batch in one piece."""
    values = {n: torch.tensor(np.asarray(v), requires_grad=n in LEARNT) for n, v in init().items()}
    norm = torch.nn.functional.batch_norm
    for indices in batches:
        x, t = (torch.tensor(DATA[key][indices]) for key in ("x", "t"))
        h = torch.einsum("nchw,kc->nkhw", x, values["w"])
        statistics = values["mean"], values["var"].clone()
        h = norm(h, *statistics, values["gamma"], values["beta"], training=True, momentum=0.1)
        before, values["var"] = values["var"], statistics[1]
        values["var"] = before + (values["var"] - before) * 2.5  # momentum 0.25
        h = torch.tanh(h).reshape(len(x), -1) @ values["v"]
        h = norm(h, values["mean2"], values["var2"], values["gamma2"], values["beta2"], training=True, momentum=0.1)
        total = ((h - t) ** 2).sum(dim=1).mean()
        gradients = torch.autograd.grad(total, [values[n] for n in LEARNT])
        with torch.no_grad():
            for name, gradient in zip(LEARNT, gradients, strict=True):
                values[name] -= LR * gradient
    return {name: v.detach().numpy() for name, v in values.items()}


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_training_is_pytorchs_over_the_whole_batch(shards: int) -> None:
    sampler = Sampler(SAMPLES, 15, shards, seed=0)
    steps = [[sampler.indices(step, shard) for shard in range(shards)] for step in range(6)]  # the third has 14 samples
    if shards == 8:
        assert {len(s) for step in steps for s in step} == {1, 2}
    expected = torch_training([np.concatenate(step) for step in steps])
    found = fit(batch=15, shards=shards, steps=6).params
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-10, err_msg=name)


def test_shards_are_another_matter_without_it() -> None:
    apart = fit(lambda params, batch: loss(params, batch, synchronised=False), steps=1).params
    assert np.abs(apart["w"] - fit(steps=1).params["w"]).max() > 1e-3


# --- the sum itself --------------------------------------------------------------------------------------------------


def second_order(params: Any, batch: Any) -> Any:
    """A loss with the gradient of a sum over all shards in it."""

    def energy(w: Any) -> Any:
        total = nn.sum_over_shards(np.sum((batch["x"][:, :, 0, 0] @ w.T) ** 2, axis=0))
        return np.sum(total**2) * 1e-6

    return np.sum(batch["t"] ** 2, axis=1) / nn.sum_over_shards(len(batch["t"])) + np.sum(
        grad(energy)(params["w"]) ** 2
    )


def test_a_gradient_within_the_loss_goes_through_the_sum() -> None:
    """Each shard's gradient of what all shards sum to is that of the sum of their losses."""
    found = fit(second_order, {"w": init()["w"]}, batch=SAMPLES, steps=1).params["w"]
    sampler = Sampler(SAMPLES, SAMPLES, 3, seed=0)
    shards = [torch.tensor(DATA["x"][sampler.indices(0, s)][:, :, 0, 0]) for s in range(3)]
    start = torch.tensor(init()["w"], requires_grad=True)
    copies = [start * 1.0 for _ in shards]
    total = sum(((x @ w.T) ** 2).sum(dim=0) for x, w in zip(shards, copies, strict=True))
    energy = 3 * (total**2).sum() * 1e-6  # every shard has the sum in its loss
    gradients = torch.autograd.grad(energy, copies, create_graph=True)
    penalty = sum((g**2).sum() * len(x) for g, x in zip(gradients, shards, strict=True)) / SAMPLES
    (gradient,) = torch.autograd.grad(penalty, start)
    np.testing.assert_allclose(found, init()["w"] - LR * gradient.numpy(), rtol=1e-10)
    assert np.abs(gradient.numpy()).max() > 0.1


def test_outside_of_a_training_step_the_sum_is_over_one_shard() -> None:
    x = np.arange(3.0)
    assert nn.sum_over_shards(x) is x
    np.testing.assert_array_equal(grad(lambda x: np.sum(nn.sum_over_shards(x) ** 2))(x), 2 * x)
    np.testing.assert_array_equal(jacobian(lambda x: nn.sum_over_shards(x) ** 2)(x), np.diag(2 * x))
    with step_context(training=False):
        assert nn.sum_over_shards(x) is x
    with step_context(training=True):
        assert nn.sum_over_shards(x) is x
        np.testing.assert_array_equal(grad(grad(lambda x: nn.sum_over_shards(x) ** 3))(2.0), 12.0)


def test_a_number_takes_the_dtype_of_what_it_meets() -> None:
    graph = Graph()
    with step_context(training=True), recording(graph):
        x = graph.input(np.ones(2, np.float32))
        assert (x / nn.sum_over_shards(3.0)).dtype == np.float32
        assert (x / nn.sum_over_shards(np.float64(3.0))).dtype == np.float64
        assert nn.sum_over_shards(3).dtype.kind == "i"


def test_equal_sums_are_neither_merged_nor_folded() -> None:
    """What is constant in one shard differs in another, and each sum is a place where all shards meet."""
    graph = Graph()
    with step_context(training=True), recording(graph):
        x = graph.input(np.ones(2))
        result = x * nn.sum_over_shards(np.full(2, 4.0)) * nn.sum_over_shards(x) * nn.sum_over_shards(x)
    steps = dtrain.graph.Plan([x], [result]).steps
    assert [s.op.name for s in steps].count("sum_over_shards") == 3


def scanned(params: Any, batch: Any) -> Any:
    return dtrain.scan(lambda c, x: (c + nn.sum_over_shards(np.sum(x)), None), 0.0, batch["t"] * params["v"][0])[0]


def checkpointed(params: Any, batch: Any) -> Any:
    return dtrain.checkpoint(lambda v: nn.sum_over_shards(np.sum(v)))(params["v"])


def large(params: Any, batch: Any) -> Any:
    return np.sum(nn.sum_over_shards(np.zeros((1000, 1000)) + params["v"][0, 0]))


def of_two_kinds(params: Any, batch: Any) -> Any:
    total = np.sum(params["v"])
    return nn.sum_over_shards(total) if len(batch["t"]) == 5 else total


def booleans(params: Any, batch: Any) -> Any:
    return np.sum(nn.sum_over_shards(params["v"] > 0))


def other_axes(params: Any, batch: Any) -> Any:
    x = np.reshape(batch["x"], (-1, 2, 9)) * params["gamma"][0]
    columns = [np.ones((x.shape[0], 2)) for _ in range(4)]
    return np.sum(nn.batch_norm(x, *columns, axis=2, synchronised=True))


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        (scanned, r"sum_over_shards at \S+.py:\d+: is within a loop or a jacobian; return the value from the body"),
        (checkpointed, r"sum_over_shards at \S+.py:\d+: is within checkpoint, which would make the sum twice; keep it"),
        (large, r"sums 2 arrays of 16,000,000 bytes .*; sum smaller ones, the largest \(1000, 1000\) .* at \S+.py:\d+"),
        (of_two_kinds, r"same sums over shards, .* with 6 samples they are none, with 5 float64\[\] at \S+.py:\d+"),
        (booleans, r"sum_over_shards at \S+.py:\d+: expected numbers, got bool"),
        (other_axes, r"batch_norm at \S+.py:\d+: synchronised takes the samples for the first axis, .* axes \(2,\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(chosen: Callable[..., Any], line: str) -> None:
    start = {n: v for n, v in init().items() if n in LEARNT}
    with pytest.raises(InputError, match=line) as refused:
        fit(chosen, start)
    assert "\n" not in str(refused.value)


def test_a_jacobian_within_a_step_is_refused() -> None:
    with step_context(training=True), pytest.raises(TraceError, match="is within a loop or a jacobian"):
        jacobian(lambda x: nn.sum_over_shards(x))(np.ones(2))


def narrow(params: Any, batch: Any) -> Any:
    x = np.reshape(batch["x"], (-1, 18)) @ params["v"][:18]
    return np.sum(nn.batch_norm(x, *[params[n] for n in STATISTICS], synchronised=True), axis=1)


@pytest.mark.parametrize(
    ("shards", "error", "line"),
    [
        (3, InputError, "step 1 has one value for a variance; choose batch so that the last batch of an epoch has"),
        (64, NonFiniteError, "step 1, shard 0: what was reported for the running value var2 is not finite"),
    ],
    ids=["another size than before", "the size of all shards"],
)
def test_a_batch_of_one_value_is_refused(shards: int, error: type[Exception], line: str) -> None:
    """Before the first step where shards of that size are new, and otherwise by what it leads to."""
    start = {n: init()[n] for n in ("v", *STATISTICS)}
    with pytest.raises(error, match=line):
        fit(narrow, start, batch=43, shards=shards)


# --- the shards of one worker ----------------------------------------------------------------------------------------


def program(**changes: Any) -> Program:
    values: dict[str, Any] = {
        "init": init,
        "loss": loss,
        "metrics": None,
        "train": DATA,
        "eval": {},
        "rule": make_rule("sgd"),
        "schedule": make_schedule("constant", lr=LR, total_steps=5),
        "seed": 0,
        "batch": 16,
        "shards": 4,
        "steps": 5,
        "dtype": np.dtype(np.float64),
    }
    return Program(**{**values, **changes})


def runner_of(p: Program) -> ShardRunner:
    start = p.initial_parameters()
    layout = p.layout(start)
    memory = RunMemory(dimensions(p, layout, 2))
    for view, name in zip(layout.views(memory.parameters), layout.names, strict=True):
        view[...] = start[name]
    return ShardRunner(p, memory)


def gradients_of(runner: ShardRunner) -> list[bytes]:
    return [b"".join(v.tobytes() for v in runner.layout.views(row)) for row in runner.memory.gradients]


def test_a_shard_that_was_done_before_is_not_run_again() -> None:
    """After a death: two shards are finished, one had handed in something, and the rest run to the same bits."""
    p = program()
    whole, again = runner_of(p), runner_of(p)
    for runner in (whole, again):
        assert runner.meets(0, [0])
        Together(runner, 0, 1, 1, lambda: None).run(0, (0, 1, 2, 3), (0, 1, 2, 3), ())
    expected = gradients_of(whole)
    assert whole.memory.arrived_words[BEATS] > 16
    assert whole.memory.arrived_words[WAITS] == 0
    again.memory.shard_done[[1, 3]] = 0
    again.memory.value_steps[1], again.memory.value_steps[3, 1:] = 0, 0
    for lost in (1, 3):
        again.memory.gradients[lost] = np.nan
    fresh = ShardRunner(p, again.memory)  # another process
    assert fresh.meets(0, [1])
    Together(fresh, 0, 1, 1, lambda: None).run(0, (1, 3), (0, 1, 2, 3), ())
    assert gradients_of(again) == expected
    assert again.memory.shard_done.tolist() == [1, 1, 1, 1]


def test_a_look_into_the_run_takes_the_first_shard_for_the_whole_batch() -> None:
    p = program()
    tensors = {"parameters": {n: np.asarray(v) for n, v in sorted(init().items())}}
    found = introspect(p, tensors, 0)
    batch = {k: a[p.sampler().indices(0, 0)] for k, a in DATA.items()}
    with step_context(training=True):
        assert found["loss"] == pytest.approx(np.mean(loss(p.initial_parameters(), batch)), rel=1e-12)
    assert all(entry["gradient"]["not_finite"] == 0 for entry in found["parameters"])
    assert "sum_over_shards" in draw(shard_graph(p, p.initial_parameters()))


def test_a_loss_without_sums_shares_its_memory_between_shards() -> None:
    p = program(loss=lambda params, batch: loss(params, batch, synchronised=False))
    runner = runner_of(p)
    assert not runner.meets(0, [0])
    assert runner.gather(0, 0) is runner.gather(0, 1)


def spoilt(params: Any, batch: Any) -> Any:
    x = np.log(np.abs(batch["x"][:, 0, 0])) @ params["v"][:3]  # of 0 in one sample
    return np.sum((x / nn.sum_over_shards(np.sum(x)) - batch["t"]) ** 2, axis=1)


def test_the_shard_that_spoilt_the_sum_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(SAMPLES, 16, 3, seed=0)
    x = DATA["x"].copy()
    x[sampler.indices(0, 1)[2], 0, 0, 1] = 0.0
    monkeypatch.setitem(DATA, "x", x)
    with pytest.raises(NonFiniteError, match=r"step 0, shard 1: the loss is nan; first in log, made at \S+.py:\d+"):
        fit(spoilt, {"v": init()["v"]})
