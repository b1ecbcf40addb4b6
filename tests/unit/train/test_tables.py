"""Tables in a run: the dense result where the rule has no memory, PyTorch's sparse one, and one line for a mistake."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dtrain
from dtrain import nn
from dtrain.comm.layout import TABLE_PARTS, Layout
from dtrain.comm.memory import RunMemory
from dtrain.comm.rows import RowSum, dense_tables, ids_of, used_rows
from dtrain.comm.threads import one_blas_thread
from dtrain.data.sampler import Sampler
from dtrain.errors import InputError, NonFiniteError
from dtrain.nn.table import Table
from dtrain.optim import make_rule, make_schedule
from dtrain.train.introspection import introspect, shard_graph
from dtrain.train.program import Program, dimensions
from dtrain.train.shard import ShardRunner
from dtrain.train.tables import rows_taken
from dtrain.train.update import Decision, Settings, SliceUpdate

SAMPLES, ROWS, WIDTH = 44, 30, 5
RANDOM = np.random.default_rng(9)
DATA = {
    "ids": RANDOM.integers(
        -ROWS, ROWS // 3, (SAMPLES, 3)
    ),  # negative ones count from the end; the middle is never taken
    "user": RANDOM.integers(0, 8, SAMPLES).astype(np.uint8),
    "t": RANDOM.standard_normal(SAMPLES),
}
START = {
    "items": RANDOM.standard_normal((ROWS, WIDTH)),
    "users": RANDOM.standard_normal((8, WIDTH)),
    "bias": RANDOM.standard_normal(8),
    "w": RANDOM.standard_normal(WIDTH),
}
TABLES = ("items", "users", "bias")
EPS = 1e-16  # so small that it does not matter: SparseAdam does not scale it as Adam does


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_blas_thread():
        yield


def start(*marked: str) -> dict[str, Any]:
    return {name: nn.table(value) if name in marked else value for name, value in START.items()}


def loss(params: Any, batch: Any) -> Any:
    items = np.sum(nn.embedding(params["items"], batch["ids"]), axis=1)
    users = np.take(params["users"], batch["user"], axis=0)
    return (np.sum(np.tanh(items) * users * params["w"], axis=1) + params["bias"][batch["user"]] - batch["t"]) ** 2


def fit(chosen: Any = loss, params: Any = None, data: Any = DATA, **options: Any) -> Any:
    given = {"batch": 16, "shards": 3, "epochs": 3, "optimizer": "sgd", "lr": 0.05, "dtype": "float64", "workers": 0}
    given["params"] = start(*TABLES) if params is None else params
    return dtrain.fit(chosen, data=data, progress=False, **{**given, **options})


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", {"name": "adagrad", "clip_value": 0.1}])
def test_a_rule_without_memory_gives_the_bits_of_dense_gradients(optimizer: Any, dtype: str) -> None:
    dense, sparse = (fit(params=start(*names), optimizer=optimizer, dtype=dtype) for names in ((), TABLES))
    for name in START:
        assert isinstance(sparse.params[name], Table) == (name in TABLES)
        assert np.array_equal(sparse.params[name], dense.params[name]), name
        assert not np.array_equal(sparse.params[name], START[name]), name
    assert sparse.loss == dense.loss


def test_the_norm_is_that_of_dense_gradients() -> None:
    """Squares are added in another grouping, so it differs by rounding, and what is clipped does too."""
    dense, sparse = (fit(params=start(*n), optimizer={"name": "sgd", "clip_norm": 0.1}) for n in ((), TABLES))
    for name in START:
        np.testing.assert_allclose(sparse.params[name], dense.params[name], rtol=1e-12, atol=1e-13)


def torch_training(make: Callable[[list[Any]], list[torch.optim.Optimizer]], steps: int) -> dict[str, np.ndarray]:
    """Train with sparse embeddings of PyTorch on the batches that dtrain takes."""
    layers = {n: torch.nn.Embedding.from_pretrained(torch.tensor(START[n].reshape(len(START[n]), -1)), freeze=False,
                                                    sparse=True) for n in TABLES}  # fmt: skip
    w = torch.tensor(START["w"], requires_grad=True)
    optimizers = make([[layer.weight for layer in layers.values()], [w]])
    sampler = Sampler(SAMPLES, 16, 3, 0)
    for step in range(steps):
        indices = np.concatenate([sampler.indices(step, s) for s in range(3)])
        ids = torch.tensor(DATA["ids"][indices] % ROWS)
        user, t = torch.tensor(DATA["user"][indices].astype(np.int64)), torch.tensor(DATA["t"][indices])
        items = torch.tanh(layers["items"](ids).sum(dim=1))
        found = (items * layers["users"](user) * w).sum(dim=1) + layers["bias"](user)[:, 0]
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((found - t) ** 2).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    found = {n: layer.weight.detach().numpy().reshape(START[n].shape) for n, layer in layers.items()}
    return {**found, "w": w.detach().numpy()}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda p: [torch.optim.SparseAdam(p[0], 0.05, eps=EPS), torch.optim.Adam(p[1], 0.05, eps=EPS)]),
        ("adagrad", lambda p: [torch.optim.Adagrad(p[0] + p[1], lr=0.05)]),
        ("sgd", lambda p: [torch.optim.SGD(p[0] + p[1], lr=0.05)]),
    ],
)
def test_training_is_that_of_pytorchs_sparse_embeddings(name: str, make: Any) -> None:
    steps = 9  # three epochs; the last batch of each has 12 samples
    optimizer = {"name": name, **({"eps": EPS} if name == "adam" else {})}
    found, expected = fit(optimizer=optimizer, epochs=None, steps=steps).params, torch_training(make, steps)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("name", ["momentum", "adam", "rmsprop", "adamw"])
def test_rows_that_no_step_takes_stand_still(name: str) -> None:
    taken = np.unique(DATA["ids"] % ROWS)
    assert 0 < len(taken) < ROWS
    params = fit(optimizer=name).params
    moved = np.flatnonzero((np.asarray(params["items"]) != START["items"]).any(axis=1))
    assert np.array_equal(moved, taken)


def test_a_model_may_consist_of_tables_and_take_no_row_at_all() -> None:
    def empty(params: Any, batch: Any) -> Any:
        nothing = params["items"][np.zeros((0,), np.int64)]
        return (params["bias"][batch["user"]] - batch["t"]) ** 2 + np.sum(nothing)

    params = {"items": nn.table(START["items"]), "bias": nn.table(START["bias"])}
    found = fit(empty, params).params
    assert np.array_equal(found["items"], START["items"])
    assert (np.asarray(found["bias"]) != START["bias"]).all()


def test_tables_and_sums_over_shards_live_together() -> None:
    """The rows of a shard are left when its last stretch is done."""

    def chosen(params: Any, batch: Any) -> Any:
        mean = nn.sum_over_shards(np.sum(params["bias"][batch["user"]])) / 16
        return loss(params, batch) + mean**2

    dense, sparse = (fit(chosen, start(*names), epochs=1) for names in ((), TABLES))
    for name in START:
        np.testing.assert_array_equal(sparse.params[name], dense.params[name])
    assert fit(chosen, epochs=1, workers=2).fingerprint == sparse.fingerprint


def test_uses_without_a_gradient_are_allowed() -> None:
    """A comparison, `stop_gradient`, and what the loss does not depend on."""

    def chosen(params: Any, batch: Any) -> Any:
        _ = params["items"] @ np.ones(WIDTH)
        known = dtrain.stop_gradient(params["users"]) @ np.ones(WIDTH)
        sign = (params["bias"] > 0)[batch["user"]]
        return loss(params, batch) + 0.0 * known[batch["user"]] + sign

    assert np.array_equal(fit(chosen, epochs=1).params["items"], fit(epochs=1).params["items"])


# --- a shard ---------------------------------------------------------------------------------------------------------


def program(chosen: Any = loss, **options: Any) -> Program:
    given: dict[str, Any] = {
        "init": lambda rng: start(*TABLES),
        "loss": chosen,
        "metrics": None,
        "train": DATA,
        "eval": {},
        "rule": make_rule("adam"),
        "schedule": make_schedule("constant", lr=0.1, total_steps=3),
        "seed": 0,
        "batch": 16,
        "shards": 3,
        "steps": 3,
        "dtype": np.dtype(np.float64),
    }
    return Program(**{**given, **options})


def memory_of(p: Program) -> RunMemory:
    memory = RunMemory(dimensions(p, p.layout(p.initial_parameters()), 1))
    layout = memory.dimensions.layout
    for name, view in zip(layout.names, layout.views(memory.parameters), strict=True):
        view[...] = START[name]
    return memory


def test_a_shard_leaves_its_rows_once_with_the_sum_of_what_each_use_gives() -> None:
    """Rows that are taken twice in one use, and in two uses."""

    def twice(params: Any, batch: Any) -> Any:
        return loss(params, batch) + np.sum(params["items"][batch["ids"][:, 0]] ** 2, axis=1)

    p = program(twice)
    memory = memory_of(p)
    layout = memory.dimensions.layout
    ShardRunner(p, memory).gather(0, 1).bind(1).run()
    indices = p.sampler().indices(0, 1)
    batch = {k: v[indices] for k, v in DATA.items()}
    gradients = dtrain.grad(lambda q: np.sum(twice(q, batch)))(START)
    for index, table in dense_tables(memory, memory.gradients[1], [1]).items():
        np.testing.assert_allclose(table, gradients[layout.names[index]], rtol=1e-13, atol=1e-14)
    for number, group in enumerate(layout.groups):
        rows = ids_of(memory, number, 1)
        assert (np.diff(rows) > 0).all()
        names = [layout.names[t] for t in group.tables]
        expected = {"items": batch["ids"] % ROWS, "users": batch["user"], "bias": batch["user"]}
        assert len(rows) == sum(len(np.unique(expected[n])) for n in names)


def test_a_step_touches_no_memory_in_proportion_to_the_table() -> None:
    """Of a table of 64 MB with Adam's two states, over eight shards: pages of 4 KB for the rows that are taken."""
    rows = 2**20
    taken = np.arange(64) * (rows // 64)

    def chosen(params: Any, batch: Any) -> Any:
        return np.sum(params["table"][batch["ids"]] ** 2 + 1.0, axis=1)

    empty = np.broadcast_to(np.float32(0), (rows, 16))
    p = program(chosen, init=lambda rng: {"table": nn.table(empty)}, train={"ids": taken}, batch=64, shards=8)
    layout = Layout(("table",), ((rows, 16),), np.dtype(np.float32), tables=(0,))
    p = replace(p, dtype=np.dtype(np.float32))
    memory = RunMemory(dimensions(p, layout, 1))
    runner = ShardRunner(p, memory)
    for shard in range(8):
        runner.gather(0, shard).bind(shard).run()
    RowSum(memory, 0, 1).run(tuple(range(8)), memory.squares[0])
    memory.coefficients[0, :3] = p.rule.coefficients(0, 0.1)
    update = SliceUpdate(memory, Settings(p.rule, None, None, "stop"), 0, (0, layout.blocks), (0, TABLE_PARTS))
    update.run(0, Decision("update", 1.0, 1.0, 64))
    assert np.array_equal(used_rows(memory, 0, range(8)), taken)
    assert memory.nbytes > 1 << 30
    assert 64 * 3 * 4096 <= os.fstat(memory.fd).st_blocks * 512 < 4 << 20


def test_a_look_into_the_run_moves_the_rows_that_are_taken() -> None:
    p = program()
    tensors = {"parameters": {n: START[n].copy() for n in sorted(START)}}
    for name in p.rule.state_names:
        tensors[f"optimizer.{name}"] = {n: np.ones_like(START[n]) for n in sorted(START)}
    found = {e["name"]: e for e in introspect(p, tensors, 0)["parameters"]}
    assert set(found) == set(START)
    still = program(chosen=lambda params, batch: np.sum(params["users"][batch["user"]] ** 2, axis=1))
    moved = {e["name"]: e["update_to_weight"] for e in introspect(still, tensors, 0)["parameters"]}
    assert moved["items"] == 0.0  # Adam's state would move it
    assert moved["users"] > 0.0
    assert moved["w"] > 0.0


def test_the_rows_that_a_recorded_loss_takes_are_counted_from_the_start() -> None:
    p = program()
    graph = shard_graph(p, START, 0, mean=True)
    layout = p.layout(p.initial_parameters())
    found = rows_taken(layout, graph)
    ids = DATA["ids"][p.sampler().indices(0, 0)]
    assert np.array_equal(found[layout.names.index("items")], np.unique(ids % ROWS))


# --- mistakes --------------------------------------------------------------------------------------------------------


def product(params: Any, batch: Any) -> Any:
    return np.sum(params["items"] @ params["w"]) + loss(params, batch)


def penalty(params: Any, batch: Any) -> Any:
    return loss(params, batch) + np.sum(params["users"] ** 2)


def one_row(params: Any, batch: Any) -> Any:
    return loss(params, batch) + np.sum(params["items"][3])


def elements(params: Any, batch: Any) -> Any:
    return loss(params, batch) + params["items"][batch["user"], 0]


def in_a_loop(params: Any, batch: Any) -> Any:
    def body(carry: Any, ids: Any) -> Any:
        return carry + np.sum(params["items"][ids]), carry

    return loss(params, batch) + dtrain.scan(body, 0.0, batch["ids"].T)[0]


@pytest.mark.parametrize(
    ("chosen", "name", "op"),
    [
        (product, "items", "matmul"),
        (penalty, "users", r"\w+"),
        (one_row, "items", "slice"),
        (elements, "items", "gather"),
        (in_a_loop, "items", "scan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_use_of_a_table_is_refused_in_one_line(chosen: Any, name: str, op: str) -> None:
    message = rf"loss: the table {name} is used by {op} at \S*test_tables.py:\d+; .* leave dtrain.nn.table away"
    with pytest.raises(InputError, match=message) as caught:
        fit(chosen)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [ROWS, -ROWS - 1])
@pytest.mark.parametrize("at", [0, 43])
def test_an_id_that_is_no_row_is_told_with_its_line(bad: int, at: int) -> None:
    """In the first step, when the loss is recorded, or later."""
    sampler = Sampler(SAMPLES, 16, 3, 0)
    order = np.concatenate([sampler.indices(step, s) for step in range(3) for s in range(3)])
    ids = DATA["ids"].copy()
    ids[order[at], 1] = bad
    with pytest.raises(
        InputError, match=r"index out of bounds: rows .* of an array of 30.*; made at \S+:\d+"
    ) as caught:
        fit(data={**DATA, "ids": ids})
    assert caught.value.exit_code == 2
    if at:
        assert "loss: items: " in str(caught.value)


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 20000))], ids=lambda v: str(v.shape)
)
def test_what_cannot_be_a_table_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="parameter items: a table has at least one row, of 1 to 16384 elements"):
        fit(params={**START, "items": nn.table(value)})


def test_a_gradient_that_is_not_finite_is_named() -> None:
    """It is that of one sample; all losses are finite."""

    def chosen(params: Any, batch: Any) -> Any:
        row = np.sum(params["users"][batch["user"]], axis=1)  # `users` is behind `items`, with rows of the same length
        return loss(params, batch) + np.sqrt(np.abs(row - row * (batch["t"] == DATA["t"][7])) ** 2)

    with pytest.raises(NonFiniteError, match=r"step \d, shard \d: the gradient of users is not finite; first in"):
        fit(chosen)


def test_the_mark_survives_what_happens_to_parameters() -> None:
    marked = nn.table(np.arange(6.0).reshape(3, 2))
    for kept in (marked.copy(), copy.deepcopy(marked), marked.astype(np.float32), pickle.loads(pickle.dumps(marked))):
        assert isinstance(kept, Table)
        assert np.array_equal(kept, marked)
    assert not isinstance(marked + 1, Table)
    assert not isinstance(np.sum(marked), Table)
