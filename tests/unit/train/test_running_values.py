"""Running values in a run: the weighted mean of the shards' reports, one clear line for what is wrong, and oracles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import dtrain
from dtrain import nn
from dtrain.comm.memory import RunMemory
from dtrain.comm.threads import one_blas_thread
from dtrain.data.sampler import Sampler
from dtrain.errors import InputError, NonFiniteError
from dtrain.nn.running import Running
from dtrain.optim import make_rule, make_schedule
from dtrain.train.blame import explain_nonfinite
from dtrain.train.program import Program, dimensions
from dtrain.train.shard import ShardRunner

SAMPLES, FEATURES, HIDDEN = 44, 6, 5
RANDOM = np.random.default_rng(9)
DATA = {
    "x": RANDOM.standard_normal((SAMPLES, FEATURES)) * 2 + 1,
    "t": RANDOM.standard_normal((SAMPLES, 2)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_blas_thread():
        yield


def init(rng: np.random.Generator | None = None) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "w1": random.standard_normal((FEATURES, HIDDEN)),
        "gamma": random.uniform(0.5, 2, HIDDEN),
        "beta": random.standard_normal(HIDDEN),
        "mean": nn.running(np.zeros(HIDDEN)),
        "var": nn.running(np.ones(HIDDEN), momentum=0.25),
        "w2": random.standard_normal((HIDDEN, 2)),
    }


def scores(params: Any, x: Any) -> Any:
    normal = nn.batch_norm(x @ params["w1"], params["gamma"], params["beta"], params["mean"], params["var"])
    return np.tanh(normal) @ params["w2"]


def loss(params: Any, batch: Any) -> Any:
    return np.sum((scores(params, batch["x"]) - batch["t"]) ** 2, axis=1)


def fit(chosen: Any = loss, params: Any = init, **options: Any) -> Any:
    given = {"batch": 16, "shards": 3, "steps": 5, "optimizer": "sgd", "lr": 0.01, "dtype": "float64", "workers": 0}
    return dtrain.fit(chosen, params, DATA, progress=False, **{**given, **options})


# --- oracles ---------------------------------------------------------------------------------------------------------


def torch_training(batches: list[list[np.ndarray]], lr: float) -> dict[str, np.ndarray]:
    """Train with PyTorch: a step for each list of shards, each of which is a list of samples."""
    values = {
        name: torch.tensor(np.asarray(v), requires_grad=name not in ("mean", "var")) for name, v in init().items()
    }
    for shards in batches:
        count = sum(len(s) for s in shards)
        total, reported = torch.zeros((), dtype=torch.float64), []
        for indices in shards:
            x, t = (torch.tensor(DATA[key][indices]) for key in ("x", "t"))
            module = torch.nn.BatchNorm1d(HIDDEN, momentum=1.0, dtype=torch.float64)  # shows the shard's statistics
            hidden = x @ values["w1"]
            module(hidden.detach())
            reported.append((len(indices), module.running_mean.numpy(), module.running_var.numpy()))
            normal = torch.nn.functional.batch_norm(
                hidden, None, None, values["gamma"], values["beta"], training=True, eps=1e-5
            )
            total = total + ((torch.tanh(normal) @ values["w2"] - t) ** 2).sum()
        total = total / count
        learnt = {n: v for n, v in values.items() if v.requires_grad}
        gradients = torch.autograd.grad(total, list(learnt.values()))
        with torch.no_grad():
            for value, gradient in zip(learnt.values(), gradients, strict=True):
                value -= lr * gradient
        for index, (name, momentum) in enumerate((("mean", 0.1), ("var", 0.25)), 1):
            mean = sum(each[0] * each[index] for each in reported) / count
            values[name] = (1 - momentum) * values[name] + momentum * torch.tensor(mean)
    return {name: v.detach().numpy() for name, v in values.items()}


def assert_trained(params: Any, expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-11, atol=1e-12, err_msg=name)


def test_three_steps_of_one_shard_are_pytorchs() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, HIDDEN, bias=False, dtype=torch.float64),
        torch.nn.BatchNorm1d(HIDDEN, dtype=torch.float64, momentum=0.1),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, 2, bias=False, dtype=torch.float64),
    )
    start = init()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(start["w1"].T))
        model[1].weight.copy_(torch.tensor(start["gamma"]))
        model[1].bias.copy_(torch.tensor(start["beta"]))
        model[3].weight.copy_(torch.tensor(start["w2"].T))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x, t = torch.tensor(DATA["x"]), torch.tensor(DATA["t"])
    for _ in range(3):
        optimizer.zero_grad()
        ((model(x) - t) ** 2).sum(dim=1).mean().backward()
        optimizer.step()
    start["var"] = nn.running(np.ones(HIDDEN))
    result = fit(params=start, batch=SAMPLES, shards=1, steps=3, optimizer="momentum", lr=0.02, eval_data=DATA)
    expected = {
        "w1": model[0].weight.detach().numpy().T,
        "gamma": model[1].weight.detach().numpy(),
        "beta": model[1].bias.detach().numpy(),
        "mean": model[1].running_mean.numpy(),
        "var": model[1].running_var.numpy(),
        "w2": model[3].weight.detach().numpy().T,
    }
    assert_trained(result.params, expected)
    with torch.no_grad():
        assert result.eval["loss"] == pytest.approx(float(((model.eval()(x) - t) ** 2).sum(dim=1).mean()), rel=1e-11)


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_several_shards_are_the_sample_weighted_mean_of_their_statistics(shards: int) -> None:
    sampler = Sampler(SAMPLES, 16, shards, seed=0)
    steps = 5  # batches of 16, 16 and 12; the shards have 3 to 6 samples unless there is one
    batches = [[sampler.indices(step, shard) for shard in range(shards)] for step in range(steps)]
    assert len({len(s) for step in batches for s in step}) > 1
    assert_trained(fit(shards=shards).params, torch_training([[*step] for step in batches], lr=0.01))


# --- what has no part in the rest ------------------------------------------------------------------------------------


def reports_of_everything(params: Any, batch: Any) -> Any:
    """A loss whose running value is far larger than its gradient."""
    nn.report(params["mean"], 1e6 * np.mean(batch["x"] @ params["w"], axis=0))
    return np.sum((batch["x"] @ params["w"] - batch["t"]) ** 2, axis=1)


def test_running_values_have_no_part_in_norm_clipping_and_decay() -> None:
    """The parameters are trained as if the running value were not there."""
    start = {"w": RANDOM.standard_normal((FEATURES, 2))}

    def plain(params: Any, batch: Any) -> Any:
        return np.sum((batch["x"] @ params["w"] - batch["t"]) ** 2, axis=1)

    optimizer = {"name": "adam", "weight_decay": 0.1, "clip_norm": 0.5, "clip_value": 0.1}
    marked = {**start, "mean": nn.running(np.zeros(2))}
    found = fit(reports_of_everything, marked, optimizer=optimizer)
    assert found.params["w"].tobytes() == fit(plain, start, optimizer=optimizer).params["w"].tobytes()
    assert np.abs(found.params["mean"]).max() > 1e3


def test_a_running_value_has_no_gradient_even_where_the_loss_uses_it() -> None:
    def chosen(params: Any, batch: Any) -> Any:
        nn.report(params["mean"], np.mean(batch["x"], axis=0))
        return np.sum(((batch["x"] - params["mean"]) @ params["w"] - batch["t"]) ** 2, axis=1)

    start = {"w": np.ones((FEATURES, 2)), "mean": nn.running(np.zeros(FEATURES), momentum=1.0)}
    result = fit(chosen, start, batch=SAMPLES, steps=1)
    np.testing.assert_allclose(result.params["mean"], DATA["x"].mean(axis=0), rtol=1e-12)
    difference = DATA["x"] @ start["w"] - DATA["t"]
    np.testing.assert_allclose(result.params["w"], start["w"] - 0.01 * 2 * DATA["x"].T @ difference / SAMPLES)


def test_a_constant_may_be_reported_and_takes_the_dtype_of_the_job() -> None:
    def chosen(params: Any, batch: Any) -> Any:
        nn.report(params["count"], 3)
        return loss(params, batch)

    result = fit(chosen, {**init(), "count": nn.running(1.0, momentum=0.5)}, steps=2, dtype="float32")
    assert result.params["count"] == 2.5
    assert result.params["count"].dtype == np.float32


def test_statistics_within_a_part_that_is_computed_again() -> None:
    def chosen(params: Any, batch: Any) -> Any:
        return np.sum((dtrain.checkpoint(scores)(params, batch["x"]) - batch["t"]) ** 2, axis=1)

    again, kept = fit(chosen), fit()
    for name in ("mean", "var"):
        assert again.params[name].tobytes() == kept.params[name].tobytes()


def test_the_mark_survives_a_training_and_another_one_begun_with_its_result() -> None:
    first = fit(steps=3)
    assert {n for n, v in first.params.items() if isinstance(v, Running)} == {"mean", "var"}
    assert first.params["var"].momentum == 0.25
    second = fit(params=first.params, steps=3)
    assert {n for n, v in second.params.items() if isinstance(v, Running)} == {"mean", "var"}
    assert not np.array_equal(second.params["mean"], first.params["mean"])


def test_an_evaluation_uses_the_running_values() -> None:
    with_them = fit(eval_data=DATA, batch=SAMPLES, epochs=3, steps=None)
    params = with_them.params
    hidden = (DATA["x"] @ params["w1"] - params["mean"]) / np.sqrt(params["var"] + 1e-5)
    expected = np.tanh(hidden * params["gamma"] + params["beta"]) @ params["w2"]
    assert with_them.eval["loss"] == pytest.approx(((expected - DATA["t"]) ** 2).sum(axis=1).mean(), rel=1e-12)


# --- mistakes --------------------------------------------------------------------------------------------------------


def twice(params: Any, batch: Any) -> Any:
    return loss(params, batch) + loss(params, batch)


def never(params: Any, batch: Any) -> Any:
    return np.sum((batch["x"] @ params["w1"] @ params["w2"] - batch["t"]) ** 2, axis=1)


def of_a_parameter(params: Any, batch: Any) -> Any:
    nn.report(params["gamma"], params["beta"])
    return loss(params, batch)


def of_a_view(params: Any, batch: Any) -> Any:
    nn.report(params["mean"][::-1], params["beta"])
    return loss(params, batch)


def of_another_array(params: Any, batch: Any) -> Any:
    nn.report(np.zeros(HIDDEN), params["beta"])
    return loss(params, batch)


def of_another_shape(params: Any, batch: Any) -> Any:
    nn.report(params["mean"], batch["x"])
    return loss(params, batch)


def of_complex_numbers(params: Any, batch: Any) -> Any:
    nn.report(params["mean"], np.full(HIDDEN, 1j))
    return never(params, batch)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (twice, r"report at \S*test_running_values.py:\d+: mean is reported a second time; give each use"),
        (never, r"loss: the running value mean is not reported in training; hand it to dtrain.nn.batch_no"),
        (of_a_parameter, r"report at \S+:\d+: gamma is a parameter; mark it in init with dtrain.nn.running"),
        (of_a_view, r"report at \S+:\d+: expected a running value just as it is in params"),
        (of_another_array, r"report at \S+:\d+: expected a running value just as it is in params"),
        (of_another_shape, r"report at \S+:\d+: expected a value of shape \(5,\), got \(6, 6\)"),
        (of_complex_numbers, r"report at \S+:\d+: expected real numbers for mean, got complex128"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mistake_is_told_in_one_line(chosen: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fit(chosen)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_mark_that_was_lost_is_told() -> None:
    with pytest.raises(InputError, match="mean is a parameter; mark it in init"):
        fit(params={name: np.array(value) for name, value in init().items()})


@pytest.mark.parametrize(("batch", "shards", "steps"), [(43, 1, 1000), (15, 14, 5), (8, 5, 1)])
def test_a_shard_of_one_sample_is_told_before_the_first_step(batch: int, shards: int, steps: int) -> None:
    """44 samples: a last batch of one, a batch in which only the first shards have two, a shard of the first batch."""
    message = r"batch_norm at \S+:\d+: shard \d+ of step \d+ has one value for a variance; choose batch and shards"
    began = []

    def noted(params: Any, batch: Any) -> Any:
        began.append(batch["x"].shape)
        return loss(params, batch)

    with pytest.raises(InputError, match=message):
        fit(noted, batch=batch, shards=shards, steps=steps)
    assert len(began) <= 3


def test_a_short_run_does_not_meet_the_small_last_batch() -> None:
    assert fit(batch=43, shards=1, steps=1).status == "succeeded"


# --- what is not finite ----------------------------------------------------------------------------------------------


def with_a_bad_report(bad: float) -> Callable[[Any, Any], Any]:
    def chosen(params: Any, batch: Any) -> Any:
        first = np.sum(params["w"])  # 1 before the first step
        nn.report(params["mean"], np.log(np.exp(first) * (bad - 1.0) + np.ones(3)))
        return np.sum((batch["x"] @ params["w"] - batch["t"]) ** 2, axis=1)

    return chosen


@pytest.mark.parametrize(("bad", "how"), [(-50.0, "log"), (np.inf, "multiply")])
def test_a_statistic_that_is_not_finite_stops_the_run_and_is_named(bad: float, how: str) -> None:
    start = {"w": np.full((FEATURES, 2), 0.1), "mean": nn.running(np.zeros(3))}
    message = (
        rf"step 0, shard 0: what was reported for the running value mean is not finite; first in .*{how}.* made at"
    )
    with pytest.raises(NonFiniteError, match=message):
        fit(with_a_bad_report(bad), start)


def test_a_statistic_that_is_not_finite_is_skipped_if_wanted() -> None:
    start = {"w": np.full((FEATURES, 2), 0.1), "mean": nn.running(np.zeros(3))}
    result = fit(with_a_bad_report(-50.0), start, on_nonfinite="skip", steps=2)
    assert (result.params["w"] == start["w"]).all()
    assert (result.params["mean"] == 0).all()


def test_a_sum_that_is_not_finite_is_named() -> None:
    """In float32 every shard's part may be finite and their sum not."""

    def chosen(params: Any, batch: Any) -> Any:
        nn.report(params["mean"], np.full(3, 5e37, np.float32))
        return np.sum((batch["x"] @ params["w"] - batch["t"]) ** 2, axis=1)

    start = {"w": np.full((FEATURES, 2), 0.1), "mean": nn.running(np.zeros(3))}
    message = "step 0: what every shard reported for the running value mean is finite, but their sum is not"
    with pytest.raises(NonFiniteError, match=message):
        fit(chosen, start, dtype="float32")


# --- a shard ---------------------------------------------------------------------------------------------------------


def test_a_shard_leaves_its_samples_times_its_statistic_in_the_place_of_the_gradient() -> None:
    p = Program(
        init=init,
        loss=loss,
        metrics=None,
        train=DATA,
        eval={},
        rule=make_rule("sgd"),
        schedule=make_schedule("constant", lr=0.01, total_steps=5),
        seed=0,
        batch=16,
        shards=3,
        steps=5,
        dtype=np.dtype(np.float64),
    )
    start = p.initial_parameters()
    layout = p.layout(start)
    assert [layout.names[i] for i, _ in layout.running] == ["mean", "var"]
    memory = RunMemory(dimensions(p, layout, 1))
    for view, name in zip(layout.views(memory.parameters), layout.names, strict=True):
        view[...] = start[name]
    runner = ShardRunner(p, memory)
    for step, shard in [(0, 0), (0, 2), (2, 1)]:
        runner.gather(step, shard).bind(shard).run()
        views = dict(zip(layout.names, layout.views(memory.gradients[shard]), strict=True))
        indices = p.sampler().indices(step, shard)
        hidden = DATA["x"][indices] @ start["w1"]
        np.testing.assert_allclose(views["mean"], len(indices) * hidden.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(views["var"], len(indices) * hidden.var(axis=0, ddof=1), rtol=1e-12)
    layout.views(memory.gradients[0])[layout.names.index("var")][1] = np.nan
    memory.shard_done[:] = 1
    assert "what was reported for the running value var is not finite" in str(explain_nonfinite(p, memory, 0))
