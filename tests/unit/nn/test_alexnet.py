"""AlexNet: parameters to the last one, PyTorch from the same weights, what begins how, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain.errors import InputError
from dtrain.graph import value_and_grad
from dtrain.graph.tree import flatten, unflatten
from dtrain.nn import make_model, supervise
from dtrain.nn.models.alexnet import FORMS, POOLED
from dtrain.optim import make_rule

SIDES = {"2012": 227, "ungrouped": 227, "one-weird-trick": 224, "small": 32}


class NoNumbers(np.random.Generator):
    """A generator of zeros: the 61 million normals of the full networks would take longer than what is tested."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        return np.zeros(size, dtype)


@pytest.mark.parametrize(
    ("form", "count"), [("2012", 60_965_224), ("ungrouped", 62_378_344), ("one-weird-trick", 61_100_840)]
)
def test_the_number_of_parameters_is_the_published_one(form: str, count: int) -> None:
    params = make_model("alexnet", form=form).init(NoNumbers(), 3 * SIDES[form] ** 2, 1000)
    assert sum(leaf.size for leaf in flatten(params)[0]) == count


def of_pytorch(form: str, params: Any, x: torch.Tensor) -> torch.Tensor:
    shape = FORMS[form]
    for i, (each, p) in enumerate(zip(shape.convolutions, params["convolutions"], strict=True)):
        x = functional.conv2d(x, p["w"], p["b"], each.stride, each.padding, groups=each.groups).relu()
        if shape.is_normalised and i < 2:
            x = functional.local_response_norm(x, 5, alpha=5 * 1e-4, beta=0.75, k=2.0)
        if i in POOLED:
            x = functional.max_pool2d(x, 3, 2)
    x = x.flatten(1)
    *inner, last = params["layers"]
    for p in inner:
        x = (x @ p["w"] + p["b"]).relu()
    return x @ last["w"] + last["b"]


@pytest.mark.parametrize(
    ("form", "side"),
    [
        ("2012", 67),
        ("ungrouped", 67),
        ("one-weird-trick", 64),
        ("small", 32),
        pytest.param("2012", 227, marks=pytest.mark.slow),
        pytest.param("one-weird-trick", 224, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_pytorchs(form: str, side: int) -> None:
    """In float32: within 1e-4 of the largest element of each gradient."""
    rng = np.random.default_rng(0)
    functions = supervise(make_model("alexnet", form=form, dropout=0.0, initial="he"), None, 3 * side * side, 10)
    params = functions.init(rng)
    batch = {"x": rng.standard_normal((2, 3, side, side), np.float32), "y": np.array([3, 7])}
    value, gradients = value_and_grad(lambda p: np.mean(functions.loss(p, batch)))(params)

    leaves, structure = flatten(params)
    traced = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    scores = of_pytorch(form, unflatten(structure, traced), torch.tensor(batch["x"]))
    loss = functional.cross_entropy(scores, torch.tensor(batch["y"]))
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    for ours, theirs in zip(flatten(gradients)[0], traced, strict=True):
        assert theirs.grad is not None
        scale = float(theirs.grad.abs().max())
        assert scale > 0
        np.testing.assert_allclose(ours, theirs.grad, rtol=0, atol=1e-4 * scale)


def test_it_begins_as_in_the_paper() -> None:
    params = make_model("alexnet", form="small").init(np.random.default_rng(0), 3 * 32 * 32, 10)
    biases = [float(layer["b"][0]) for layer in (*params["convolutions"], *params["layers"])]
    assert biases == [0, 1, 0, 1, 1, 1, 1, 0]
    for layer in (*params["convolutions"], *params["layers"]):
        assert 0.009 < layer["w"].std() < 0.011
        assert len(set(layer["b"].tolist())) == 1


def test_the_papers_update() -> None:
    rule = make_rule("momentum", momentum=0.9, weight_decay=5e-4)
    w, v, found = np.ones(1), np.zeros(1), []
    for step in range(3):
        rule.update(w, np.full(1, 0.5), (v,), rule.coefficients(step, 0.01), (np.empty(1), np.empty(1)))
        found.append(float(w[0]))
    np.testing.assert_allclose(found, [0.994995, 0.985485525025, 0.9719220701198749], rtol=1e-15)


@pytest.mark.parametrize(
    ("options", "features", "said"),
    [
        ({}, 3 * 32 * 32, r"model\.form: the images of 32 by 32 are too small for 2012; choose small"),
        ({}, 100, "expected square images of 3 channels, got 100 numbers a sample"),
        ({"form": "2013"}, 100, r"model\.form: got '2013'"),
    ],
)
def test_a_mistake_is_one_line(options: dict[str, Any], features: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_model("alexnet", **options).init(NoNumbers(), features, 10)
