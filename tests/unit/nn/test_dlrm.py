"""The recommender: its size, its gradients against PyTorch, what it refuses, and the data that it learns from."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from dtrain.data import make_source
from dtrain.errors import InputError, ShapeError
from dtrain.graph import value_and_grad
from dtrain.graph.tree import flatten, map_leaves, named_leaves, unflatten
from dtrain.jobs.build import build
from dtrain.jobs.spec import parse_spec
from dtrain.nn import accuracy, make_model, supervise
from dtrain.nn.table import Table

SMALL = {"tables": 3, "rows": 7, "width": 4, "bottom": [5], "top": [6, 5]}
N, FEATURES = 9, 2


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "x": random.standard_normal((N, FEATURES)),
        "ids": random.integers(0, 7, (N, 3)).astype(np.int32),
        "y": random.integers(0, 2, N),
    }


def test_the_sizes_of_the_reference_workload() -> None:
    params = make_model("dlrm").init(np.random.default_rng(0), 13, 2)
    sizes = {name: prod(leaf.shape) for name, leaf in named_leaves(params)}
    assert sum(sizes.values()) == 4_187_601
    assert sizes["tables"] == 26 * 10_000 * 16
    assert [name for name, leaf in named_leaves(params) if isinstance(leaf, Table)] == ["tables"]
    assert np.abs(params["tables"]).max() <= 0.01
    assert np.abs(params["tables"]).mean() == pytest.approx(0.005, rel=0.01)


def torch_loss(params: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    x = batch["x"]
    for layer in params["bottom"]:
        x = torch.relu(x @ layer["w"] + layer["b"])
    rows = [params["tables"][7 * t : 7 * t + 7][batch["ids"][:, t].long()] for t in range(3)]
    vectors = torch.stack([x, *rows], dim=1)
    products = torch.einsum("nid,njd->nij", vectors, vectors)
    pairs = torch.stack([products[:, i, j] for i in range(4) for j in range(i)], dim=1)
    h = torch.cat([x, pairs], dim=1)
    for layer in params["top"][:-1]:
        h = torch.relu(h @ layer["w"] + layer["b"])
    scores = (h @ params["top"][-1]["w"] + params["top"][-1]["b"])[:, 0]
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, batch["y"].double())


def test_loss_and_gradients_are_pytorchs() -> None:
    functions, batch = supervise(make_model("dlrm", **SMALL), None, FEATURES, 2), data()
    params = map_leaves(
        lambda a: a + np.random.default_rng(a.size).standard_normal(a.shape),
        functions.init(np.random.default_rng(0)),
    )
    value, gradients = value_and_grad(lambda p, b: np.mean(functions.loss(p, b)))(params, batch)
    leaves, structure = flatten(params)
    traced = [torch.tensor(np.asarray(leaf), requires_grad=True) for leaf in leaves]
    expected = torch_loss(unflatten(structure, traced), {k: torch.tensor(v) for k, v in batch.items()})
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for (name, gradient), reference in zip(named_leaves(gradients), traced, strict=True):
        np.testing.assert_allclose(gradient, reference.grad, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_accuracy_of_one_score_is_its_sign() -> None:
    assert accuracy(np.array([[2.0], [-1.0], [0.0], [0.5]]), np.array([1, 1, 0, 0])).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("ids", [np.zeros((N, 4), np.int64), np.zeros((N, 3)), np.zeros(N, np.int64)])
def test_ids_that_do_not_fit_are_refused(ids: np.ndarray) -> None:
    functions = supervise(make_model("dlrm", **SMALL), None, FEATURES, 2)
    params = functions.init(np.random.default_rng(0))
    with pytest.raises(ShapeError, match=r"model: expected ids of integers \(n, 3\), got"):
        functions.loss(params, {**data(), "ids": ids})


@pytest.mark.parametrize("bad", [-1, 7])
def test_an_id_of_another_table_is_no_row(bad: int) -> None:
    functions, batch = supervise(make_model("dlrm", **SMALL), None, FEATURES, 2), data()
    params = functions.init(np.random.default_rng(0))
    batch["ids"][4, 1] = bad
    with pytest.raises(IndexError, match="index 21 is out of bounds"):
        functions.loss(params, batch)


def job(**changes: Any) -> Any:
    spec = {
        "model": {"name": "dlrm"},
        "data": {"name": "clicks", "samples": 100},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch": 10,
        "steps": 1,
    }
    return build(parse_spec({**spec, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "dlrm", "rows": 5000}}, r"data.train: expected ids from 0 to 4999, got \d+ in sample \d+"),
        ({"data": {"name": "digits"}}, "model.name: dlrm expects arrays x, ids and y, the data has x, y; name them"),
    ],
)
def test_data_that_do_not_fit_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        job(**changes)
    assert "\n" not in str(caught.value)


def test_more_than_two_labels_are_one_line() -> None:
    with pytest.raises(InputError, match="dlrm expects labels 0 and 1, the data has 3 classes"):
        make_model("dlrm").init(np.random.default_rng(0), 13, 3)


# --- clicks ----------------------------------------------------------------------------------------------------------


def test_clicks_are_a_function_of_their_options() -> None:
    first, again, other = (make_source("clicks", samples=300, seed=seed) for seed in (0, 0, 1))
    for part, arrays in (("train", first.train), ("eval", first.eval)):
        assert {n: (a.dtype, a.shape[1:]) for n, a in arrays.items()} == {
            "x": (np.float32, (13,)),
            "ids": (np.int64, (26,)),
            "y": (np.int64, ()),
        }
        for name, array in arrays.items():
            assert np.array_equal(array, getattr(again, part)[name])
            assert not np.array_equal(array, getattr(other, part)[name])
    assert (first.n, first.n_eval, first.classes) == (240, 60, 2)


def test_few_ids_are_frequent_and_labels_are_even() -> None:
    source = make_source("clicks", samples=20_000, tables=2, rows=1000, skew=3.0, held_out=0)
    ids = source.train["ids"]
    assert 0 <= ids.min() < ids.max() < 1000
    for below in (1, 10, 100):
        assert np.mean(ids < below) == pytest.approx((below / 1000) ** (1 / 3), abs=0.01)
    assert np.mean(source.train["y"]) == pytest.approx(0.5, abs=0.1)


def test_the_label_follows_numbers_and_categories() -> None:
    """Least squares on the numbers, and on which of two rows is taken, both tell something of the label."""
    source = make_source("clicks", samples=8000, tables=1, rows=2, features=3, held_out=0)
    x, y = source.train["x"], source.train["y"] - 0.5
    explained = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.corrcoef(explained, y)[0, 1] > 0.2
    shares = [np.mean(source.train["y"][source.train["ids"][:, 0] == row]) for row in (0, 1)]
    assert abs(shares[0] - shares[1]) > 0.1


def test_more_held_out_than_there_are_is_one_line() -> None:
    with pytest.raises(InputError, match=r"data\.held_out: expected fewer than the 10 samples, got 10"):
        make_source("clicks", samples=10, held_out=10)
