"""The models that ship: shapes, gradients against PyTorch, the penalty, dropout, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dtrain.errors import InputError
from dtrain.graph import step_context, value_and_grad
from dtrain.graph.tree import flatten, named_leaves, unflatten
from dtrain.nn import MODELS, make_model, supervise
from dtrain.nn.running import Running

FEATURES, CLASSES, SAMPLES = 16, 4, 13

TORCH_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def batch() -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    return {"x": random.standard_normal((SAMPLES, FEATURES)), "y": random.integers(0, CLASSES, SAMPLES)}


def classes_of(name: str) -> int:
    return 2 if name == "dlrm" else CLASSES


def in_float64(params: Any) -> Any:
    """The parameters in float64, with biases that are not 0."""
    leaves, structure = flatten(params)
    random = np.random.default_rng(3)
    return unflatten(structure, [leaf + 0.1 * random.standard_normal(leaf.shape) for leaf in leaves])


def torch_loss(model: Any, params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    layers = params.get("layers", [params])
    for layer in layers[:-1]:
        x = TORCH_ACTIVATIONS[model.activation](x @ layer["w"] + layer["b"])
    scores = x @ layers[-1]["w"] + layers[-1]["b"]
    if model.default_loss == "hinge":
        loss = CLASSES * torch.nn.functional.multi_margin_loss(scores, y)
    else:
        loss = torch.nn.functional.cross_entropy(scores, y)
    return loss + 0.5 * model.l2 * sum((layer["w"] ** 2).sum() for layer in layers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softmax", {}),
        ("softmax", {"l2": 0.1}),
        ("svm", {}),
        ("svm", {"l2": 0.1}),
        ("mlp", {"hidden": [5], "activation": "relu", "l2": 0.1}),
        ("mlp", {"hidden": [5, 6], "activation": "tanh"}),
        ("mlp", {"hidden": [5, 6, 3], "activation": "sigmoid", "l2": 0.01}),
        ("mlp", {"hidden": []}),
    ],
)
def test_loss_and_gradients_are_pytorchs(name: str, options: dict[str, Any]) -> None:
    model, data = make_model(name, **options), batch()
    functions = supervise(model, None, FEATURES, CLASSES)
    params = in_float64(functions.init(np.random.default_rng(0)))
    value, gradients = value_and_grad(lambda p, b: np.mean(functions.loss(p, b)))(params, data)

    leaves, structure = flatten(params)
    traced = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    expected = torch_loss(model, unflatten(structure, traced), torch.tensor(data["x"]), torch.tensor(data["y"]))
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for (leaf_name, gradient), reference in zip(named_leaves(gradients), traced, strict=True):
        np.testing.assert_allclose(gradient, reference.grad, rtol=1e-10, atol=1e-12, err_msg=leaf_name)


def sized(name: str) -> tuple[Any, int]:
    """A model of that name and the number of its features."""
    return (make_model(name, form="small", channels=1), 1024) if name == "alexnet" else (make_model(name), FEATURES)


@pytest.mark.parametrize("name", MODELS)
def test_init_gives_float32_of_the_right_shapes(name: str) -> None:
    model, features = sized(name)
    params = model.init(np.random.default_rng(0), features, classes_of(name))
    assert {leaf.dtype for leaf in flatten(params)[0]} == {np.dtype(np.float32)}
    x: np.ndarray = np.random.default_rng(2).standard_normal((SAMPLES, features), np.float32)
    shape: tuple[int, ...] = (SAMPLES, 1 if name == "dlrm" else CLASSES)
    others = [np.zeros((SAMPLES, 26), np.int64)] if "ids" in model.arrays else []
    if model.reads_integers:
        x, shape = np.arange(SAMPLES * FEATURES).reshape(SAMPLES, FEATURES) % CLASSES, (SAMPLES, FEATURES, CLASSES)
    if model.reads_vectors:
        x, shape = np.stack([x, x, x], axis=1), (SAMPLES, 3, CLASSES)
    with step_context(0, 0, 0, training=False):
        scores = model.predict(params, x, *others)
    assert scores.shape == shape
    assert scores.dtype == np.float32


def test_mlp_names_and_shapes() -> None:
    params = make_model("mlp", hidden=[5, 6]).init(np.random.default_rng(0), FEATURES, CLASSES)
    assert [(name, leaf.shape) for name, leaf in named_leaves(params)] == [
        ("layers.0.b", (5,)),
        ("layers.0.w", (16, 5)),
        ("layers.1.b", (6,)),
        ("layers.1.w", (5, 6)),
        ("layers.2.b", (4,)),
        ("layers.2.w", (6, 4)),
    ]


def test_mlp_with_batch_norm_has_scale_shift_and_statistics_instead_of_a_bias() -> None:
    params = make_model("mlp", hidden=[5], batch_norm=True).init(np.random.default_rng(0), FEATURES, CLASSES)
    assert [(name, leaf.shape, isinstance(leaf, Running)) for name, leaf in named_leaves(params)] == [
        ("layers.0.beta", (5,), False),
        ("layers.0.gamma", (5,), False),
        ("layers.0.mean", (5,), True),
        ("layers.0.var", (5,), True),
        ("layers.0.w", (16, 5), False),
        ("layers.1.b", (4,), False),
        ("layers.1.w", (5, 4), False),
    ]
    assert {leaf.dtype for leaf in flatten(params)[0]} == {np.dtype(np.float32)}
    plain = make_model("mlp", hidden=[5]).init(np.random.default_rng(0), FEATURES, CLASSES)
    np.testing.assert_array_equal(params["layers"][0]["w"], plain["layers"][0]["w"])


def test_mlp_says_how_batch_norm_is_written() -> None:
    with pytest.raises(InputError, match=r"model\.batch_norm: got 'all'; choose from false, synchronised, true"):
        make_model("mlp", batch_norm="all")


@pytest.mark.parametrize("batch_norm", [True, "synchronised"])
@pytest.mark.parametrize("training", [True, False])
def test_mlp_with_batch_norm_is_pytorchs(training: bool, batch_norm: bool | str) -> None:
    """Linear, norm, activation: loss, gradients and statistics."""
    functions = supervise(make_model("mlp", hidden=[5, 6], batch_norm=batch_norm), None, FEATURES, CLASSES)
    data, start = batch(), in_float64(functions.init(np.random.default_rng(0)))
    names = [name for name, _ in named_leaves(start)]
    leaves, structure = flatten(start)
    traced = [
        torch.tensor(leaf, requires_grad=not n.endswith(("mean", "var"))) for n, leaf in zip(names, leaves, strict=True)
    ]
    values, x = unflatten(structure, traced), torch.tensor(data["x"])
    for layer in values["layers"][:-1]:
        statistics, learnt = (layer["mean"], layer["var"]), (layer["gamma"], layer["beta"])
        x = torch.relu(torch.nn.functional.batch_norm(x @ layer["w"], *statistics, *learnt, training=training))
    last = values["layers"][-1]
    expected = torch.nn.functional.cross_entropy(x @ last["w"] + last["b"], torch.tensor(data["y"]))
    expected.backward()
    with step_context(training=training) as context:
        context.reports = []
        loss = np.mean(functions.loss(start, data))
        reports = list(context.reports)
        value, gradients = value_and_grad(lambda p, b: np.mean(functions.loss(p, b)))(start, data)
    np.testing.assert_allclose(loss, value, rtol=0 if batch_norm is True else 1e-15)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for (name, gradient), reference in zip(named_leaves(gradients), traced, strict=True):
        if reference.requires_grad:
            np.testing.assert_allclose(gradient, reference.grad, rtol=1e-10, atol=1e-12, err_msg=name)
    after = [v for n, v in zip(names, traced, strict=True) if n.endswith(("mean", "var"))]  # PyTorch wrote into them
    assert len(reports) == len(after) * training
    for each, reference in zip(reports, after, strict=False):
        np.testing.assert_allclose(0.9 * each.leaf + 0.1 * each.value, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_init_is_a_function_of_the_generator(name: str) -> None:
    model, features = sized(name)
    first, again, other = (
        np.concatenate([leaf.ravel() for leaf in flatten(model.init(rng, features, classes_of(name)))[0]])
        for rng in map(np.random.default_rng, (0, 0, 1))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_penalty_is_added_to_each_sample_and_leaves_biases_alone() -> None:
    data = batch()
    plain, penalised = (supervise(make_model("mlp", hidden=[5], l2=l2), None, FEATURES, CLASSES) for l2 in (0, 0.2))
    params = in_float64(plain.init(np.random.default_rng(0)))
    weights = sum(np.sum(layer["w"] ** 2) for layer in params["layers"])
    difference = penalised.loss(params, data) - plain.loss(params, data)
    assert difference.shape == (SAMPLES,)
    np.testing.assert_allclose(difference, 0.5 * 0.2 * weights)


def test_metrics_are_per_sample() -> None:
    functions = supervise(make_model("softmax"), None, 2, 2)
    params = {"w": np.eye(2), "b": np.zeros(2)}
    data = {"x": np.array([[2.0, 1], [1, 2], [5, 0]]), "y": np.array([0, 0, 0])}
    assert functions.metrics(params, data)["accuracy"].tolist() == [1, 0, 1]


def test_regression_has_no_accuracy() -> None:
    functions = supervise(make_model("mlp", hidden=[3]), "mean_squared_error", FEATURES, 1)
    data = batch() | {"y": np.linspace(0, 1, SAMPLES)}
    params = functions.init(np.random.default_rng(0))
    assert functions.loss(params, data).shape == (SAMPLES,)
    assert functions.metrics(params, data) == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_samples_are_flattened_and_taken_in_the_dtype_of_the_parameters(dtype: type) -> None:
    functions = supervise(make_model("mlp", hidden=[3]), None, 12, CLASSES)
    params = functions.init(np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 255, (SAMPLES, 3, 2, 2)).astype(dtype)
    scores = functions.predict(params, images)
    np.testing.assert_array_equal(scores, functions.predict(params, images.reshape(SAMPLES, 12).astype(np.float32)))
    value, gradients = value_and_grad(lambda p, b: np.mean(functions.loss(p, b)))(
        params, {"x": images, "y": np.zeros(SAMPLES, np.int64)}
    )
    assert scores.dtype == np.asarray(value).dtype == gradients["layers"][0]["w"].dtype == np.float32


def test_each_model_has_its_own_loss() -> None:
    names = {name: supervise(make_model(name), None, 2, 2).loss_name for name in MODELS}
    bits = dict.fromkeys(("dlrm", "ntm", "deep-lstm"), "binary_cross_entropy")
    assert names == dict.fromkeys(MODELS, "softmax_cross_entropy") | {"svm": "hinge"} | bits
    assert supervise(make_model("svm"), "squared_hinge", 2, 2).loss_name == "squared_hinge"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mpl", {}, "model.name: there is no model 'mpl'; did you mean 'mlp'?"),
        ("mlp", {"hiden": [3]}, "model.hiden: model 'mlp' has no option 'hiden'; did you mean 'hidden'?"),
        ("mlp", {"hidden": 3}, "model.hidden: expected a list, got 3"),
        ("mlp", {"hidden": [3, 0]}, "model.hidden: expected a number at least 1, got 0"),
        ("mlp", {"activation": "gelu"}, "model.activation: got 'gelu'; .*choose from relu, sigmoid, tanh"),
        ("mlp", {"dropout": 1}, "model.dropout: expected a number at least 0 and below 1, got 1.0"),
        ("svm", {"l2": -1}, "model.l2: expected a number at least 0, got -1.0"),
        ("softmax", {"hidden": [3]}, "model.hidden: model 'softmax' has no option 'hidden'; choose from l2"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(name, **options)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(InputError, match="loss: there is no loss 'crossentropy'"):
        supervise(make_model("mlp"), "crossentropy", 2, 2)


@pytest.mark.parametrize("kernel", [2, 3])
def test_convnet_is_pytorchs(kernel: int) -> None:
    """Convolution, relu, pooling, twice; a hidden layer; scores: loss and gradients, with a penalty on the weights."""
    functions = supervise(
        make_model("convnet", filters=[3, 5], kernel=kernel, hidden=[6], channels=2, l2=0.1), None, 50, CLASSES
    )
    random = np.random.default_rng(4)
    data = {"x": random.standard_normal((SAMPLES, 2, 5, 5)), "y": random.integers(0, CLASSES, SAMPLES)}
    params = in_float64(functions.init(np.random.default_rng(0)))
    value, gradients = value_and_grad(lambda p, b: np.mean(functions.loss(p, b)))(params, data)

    leaves, structure = flatten(params)
    traced = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    values, x = unflatten(structure, traced), torch.tensor(data["x"])
    for each in values["convolutions"]:
        x = torch.nn.functional.conv2d(x, each["w"], each["b"], padding=kernel // 2)
        x = torch.nn.functional.max_pool2d(torch.relu(x), 2)
    x, (hidden, last) = x.flatten(1), values["layers"]
    scores = torch.relu(x @ hidden["w"] + hidden["b"]) @ last["w"] + last["b"]
    weights = [each["w"] for part in values.values() for each in part]
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(data["y"]))
    expected = expected + 0.05 * sum((w**2).sum() for w in weights)
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=1e-10)
    for (name, gradient), reference in zip(named_leaves(gradients), traced, strict=True):
        np.testing.assert_allclose(gradient, reference.grad, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (7, {}, "model convnet: expected square images of 1 channel, got 7 numbers a sample"),
        (16, {"channels": 3}, "expected square images of 3 channels, got 16 numbers a sample"),
        (9, {}, "filters: the images of 3 by 3 are too small for 2 poolings"),
    ],
)
def test_convnet_refuses_what_is_no_image(features: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model("convnet", **options).init(np.random.default_rng(0), features, CLASSES)
