"""The models of sequences: PyTorch from the same weights, what a place sees, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dtrain.errors import InputError, ShapeError
from dtrain.graph import step_context, value_and_grad
from dtrain.graph.tree import flatten, unflatten
from dtrain.jobs.build import build
from dtrain.jobs.spec import parse_spec
from dtrain.nn import make_model, supervise
from dtrain.train.observer import Observer
from tests.support import train

TIME, CLASSES = 6, 5
GPT = {"name": "transformer", "width": 16, "heads": 2, "layers": 2}


def windows(n: int = 4) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, CLASSES, (n, TIME + 1))
    return {"x": ids[:, :-1], "y": ids[:, 1:]}


def gpt_of_pytorch(params: Any, x: torch.Tensor, heads: int) -> torch.Tensor:
    def norm(h: torch.Tensor, p: Any) -> torch.Tensor:
        return functional.layer_norm(h, h.shape[-1:], p["gamma"], p["beta"])

    def linear(h: torch.Tensor, p: Any) -> torch.Tensor:
        return functional.linear(h, p["w"].T, p["b"])

    h = functional.embedding(x, params["token"]) + params["position"]
    for block in params["blocks"]:
        n, time, width = h.shape
        qkv = linear(norm(h, block["norm1"]), block["qkv"])
        q, k, v = qkv.view(n, time, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + linear(seen.transpose(1, 2).reshape(n, time, width), block["out"])
        h = h + linear(functional.gelu(linear(norm(h, block["norm2"]), block["up"])), block["down"])
    return norm(h, params["norm"]) @ params["head"]


def test_twenty_steps_of_adam_on_a_gpt_are_pytorchs() -> None:
    data = {"name": "characters", "window": 12, "stride": 12}
    optimizer = {"name": "adam", "lr": 0.01}
    spec = parse_spec({"model": GPT, "data": data, "optimizer": optimizer, "batch": 1000, "shards": 3, "steps": 20})
    losses: list[float] = []

    class Watch(Observer):
        def steps(self, records: Any) -> None:
            losses.extend(record.loss for record in records)

    train(spec, 0, Watch())

    program = build(spec)
    leaves, structure = flatten(program.initial_parameters())
    traced = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    params = unflatten(structure, traced)
    x, y = torch.tensor(program.train["x"]), torch.tensor(program.train["y"])
    adam, expected = torch.optim.Adam(traced, lr=0.01), []
    for _ in range(20):
        adam.zero_grad()
        loss = functional.cross_entropy(gpt_of_pytorch(params, x, heads=2).flatten(0, 1), y.flatten())
        loss.backward()
        adam.step()
        expected.append(loss.item())
    assert expected[-1] < 0.8 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)


def test_gradients_of_two_layers_of_lstm_are_pytorchs() -> None:
    batch = windows()
    functions = supervise(make_model("lstm", width=3, units=4, layers=2), None, TIME, CLASSES)
    leaves, structure = flatten(functions.init(np.random.default_rng(0)))
    leaves = [leaf.astype(np.float64) for leaf in leaves]
    value, gradients = value_and_grad(lambda p, b: np.mean(functions.loss(p, b)))(unflatten(structure, leaves), batch)

    traced = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    params = unflatten(structure, traced)
    h = functional.embedding(torch.tensor(batch["x"]), params["token"]).transpose(0, 1)
    for layer in params["layers"]:
        state, out = (torch.zeros(4, 4, dtype=h.dtype),) * 2, []
        for x in h:
            state = torch.lstm_cell(x, state, layer["w"].T, layer["u"].T, layer["b"], torch.zeros(16, dtype=h.dtype))
            out.append(state[0])
        h = torch.stack(out)
    scores = h.transpose(0, 1) @ params["head"]["w"] + params["head"]["b"]
    expected = functional.cross_entropy(scores.flatten(0, 1), torch.tensor(batch["y"]).flatten())
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for ours, reference in zip(flatten(gradients)[0], traced, strict=True):
        np.testing.assert_allclose(ours, reference.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_a_place_sees_what_came_before_it_alone(name: str) -> None:
    functions = supervise(make_model(name), None, TIME, CLASSES)
    params, x = functions.init(np.random.default_rng(0)), windows()["x"]
    before, changed = functions.predict(params, x), x.copy()
    changed[:, 3] = (x[:, 3] + 1) % CLASSES
    after = functions.predict(params, changed)
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    for place in range(3, TIME):
        assert not np.array_equal(after[:, place], before[:, place])


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_loss_and_accuracy_are_means_over_the_time(name: str) -> None:
    functions = supervise(make_model(name), None, TIME, CLASSES)
    params, batch = functions.init(np.random.default_rng(0)), windows()
    scores = functions.predict(params, batch["x"])
    e = np.exp(scores.astype(np.float64))
    p = np.take_along_axis(e / e.sum(-1, keepdims=True), batch["y"][..., None], -1)[..., 0]
    np.testing.assert_allclose(functions.loss(params, batch), -np.log(p).mean(1), rtol=1e-5)
    accuracy = functions.metrics(params, batch)["accuracy"]
    np.testing.assert_allclose(accuracy, (scores.argmax(-1) == batch["y"]).mean(1), rtol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_dropout_is_for_training_alone(name: str) -> None:
    functions = supervise(make_model(name, dropout=0.5), None, TIME, CLASSES)
    plain = supervise(make_model(name), None, TIME, CLASSES)
    params, x = functions.init(np.random.default_rng(0)), windows()["x"]
    with step_context(training=False):
        np.testing.assert_array_equal(functions.predict(params, x), plain.predict(params, x))
    with step_context(seed=0, step=0, shard=0, training=True):
        assert not np.allclose(functions.predict(params, x), plain.predict(params, x))


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match=r"model.heads: 3 heads do not divide the width 64"):
        make_model("transformer", heads=3)
    functions, batch = supervise(make_model("lstm"), None, TIME, CLASSES), windows()
    params = functions.init(np.random.default_rng(0))
    with pytest.raises(ShapeError, match=r"expected x of integers \(n, 6\), got float64 \(4, 6\)"):
        functions.predict(params, batch["x"].astype(np.float64))
    with pytest.raises(ShapeError, match=r"expected x of integers \(n, 6\), got int64 \(4, 5\)"):
        functions.predict(params, batch["x"][:, 1:])
    with pytest.raises(ShapeError, match=r"expected y of integers \(4, 6\), got int64 \(4,\)"):
        functions.loss(params, batch | {"y": batch["y"][:, 0]})


def test_sequences_may_come_from_a_file_of_the_user(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **windows())
    spec = {"model": {"name": "lstm"}, "data": {"name": "npz", "train": str(tmp_path / "train.npz")}, "steps": 1}
    program = build(parse_spec({**spec, "optimizer": {"name": "sgd", "lr": 0.1}, "batch": 4}))
    tokens = max(int(a.max()) for a in windows().values()) + 1
    assert program.initial_parameters()["token"].shape == (tokens, 32)

    np.savez(tmp_path / "train.npz", x=windows()["x"] - 1, y=windows()["y"])
    with pytest.raises(InputError, match=r"data\.train: 'x' has -1; number the tokens from 0"):
        build(parse_spec({**spec, "optimizer": {"name": "sgd", "lr": 0.1}, "batch": 4}))
