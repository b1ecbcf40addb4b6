"""The mark of a running value stays on the array, and a report says what belongs to it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest

from dtrain.errors import InputError, ShapeError, TraceError
from dtrain.graph import grad, map_leaves, scan, step_context
from dtrain.nn import report, running
from dtrain.nn.running import Running

MARKED = running(np.arange(4.0, dtype=np.float32), momentum=0.25)


@pytest.mark.parametrize(
    "keep",
    [
        lambda a: a,
        lambda a: a.copy(),
        lambda a: a.astype(np.float64),
        lambda a: a[1:],
        lambda a: a.reshape(2, 2),
        copy.copy,
        copy.deepcopy,
        lambda a: copy.deepcopy({"layers": [{"mean": a}]})["layers"][0]["mean"],
        lambda a: map_leaves(lambda leaf: leaf, {"mean": a})["mean"],
        lambda a: pickle.loads(pickle.dumps(a)),
        lambda a: cloudpickle.loads(cloudpickle.dumps(a)),
    ],
)
def test_the_mark_survives(keep: Any) -> None:
    kept = keep(MARKED)
    assert isinstance(kept, Running)
    assert kept.momentum == 0.25


def test_the_mark_survives_pickling_beside_the_content() -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(MARKED, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    again = pickle.loads(data, buffers=buffers)
    assert again.momentum == 0.25
    np.testing.assert_array_equal(again, MARKED)


@pytest.mark.parametrize(
    "make", [lambda a: a + 1, lambda a: np.sqrt(a), lambda a: a.sum(), lambda a: np.mean(a), lambda a: np.ones(4) * a]
)
def test_results_of_arithmetic_are_not_marked(make: Any) -> None:
    assert not isinstance(make(MARKED), Running)
    assert make(MARKED) == pytest.approx(make(np.arange(4.0)))


def test_a_scalar_can_be_marked() -> None:
    marked = running(2.5)
    assert (marked.shape, marked.momentum, float(marked)) == ((), 0.1, 2.5)
    assert type(marked * 2) is np.float64


def test_marking_does_not_touch_the_array_and_takes_the_newest_momentum() -> None:
    array = np.ones(3)
    first = running(array)
    second = running(first, momentum=0.5)
    assert (type(array), first.momentum, second.momentum) == (np.ndarray, 0.1, 0.5)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(InputError, match=f"momentum: expected above 0 and at most 1, got {momentum}"):
        running(np.zeros(2), momentum)


# --- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_is_kept_for_who_asks() -> None:
    with step_context(training=True) as context:
        report(MARKED, np.ones(4))  # nobody asks
        assert context.reports is None
        context.reports = []
        value = np.ones(4)
        report(MARKED, value)
        (one,) = context.reports
    assert one.leaf is MARKED
    assert one.value is value
    assert one.line.startswith("tests/unit/nn/test_running.py:") or one.line.startswith("test_running.py:")


def test_nothing_is_reported_in_an_evaluation() -> None:
    with step_context(training=False) as context:
        context.reports = []
        report(MARKED, np.ones(4))
        assert context.reports == []


@pytest.mark.parametrize("training", [True, False])
def test_a_report_of_the_wrong_shape_is_refused(training: bool) -> None:
    message = r"report at \S+:\d+: expected a value of shape \(4,\), got \(1, 4\)"
    with step_context(training=training), pytest.raises(ShapeError, match=message):
        report(MARKED, np.ones((1, 4)))


def test_a_report_needs_a_context() -> None:
    with pytest.raises(TraceError, match="step_context"):
        report(MARKED, np.ones(4))


def test_a_report_within_a_loop_is_refused() -> None:
    def loss(x: Any) -> Any:
        def body(carry: Any, item: Any) -> tuple[Any, Any]:
            report(MARKED, item)
            return carry + np.sum(item), item

        return scan(body, 0.0, x)[0]

    with step_context(training=True) as context:
        context.reports = []
        with pytest.raises(TraceError, match=r"report at \S+:\d+: is within a loop; return the value from its body"):
            grad(loss)(np.ones((3, 4)))
