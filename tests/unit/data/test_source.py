"""Arrays that do not fit are refused in one line; those that fit are passed on as they are."""

import numpy as np
import pytest

from dtrain.data.source import Source, check_finite, from_arrays
from dtrain.errors import InputError

x = np.arange(12, dtype=np.float32).reshape(4, 3)
y = np.array([0, 2, 1, 2])


def refused(message: str, *args, make=from_arrays, **kwargs) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_arrays_are_used_as_they_are_but_read_only():
    source = from_arrays({"x": x, "y": y}, {"x": x[:2], "y": y[:2]})
    assert np.shares_memory(source.train["x"], x)
    assert not source.train["x"].flags.writeable
    assert x.flags.writeable
    assert (source.n, source.n_eval, source.features, source.classes) == (4, 2, 3, 3)


def test_without_labels_or_evaluation():
    source = from_arrays({"tokens": np.zeros((5, 7), np.int32)})
    assert (source.n, source.n_eval, source.features, source.classes, source.eval) == (5, 0, None, None, {})


def test_targets_that_are_no_labels_give_no_classes():
    assert from_arrays({"x": x, "y": x[:, 0]}).classes is None
    assert from_arrays({"x": x, "y": np.zeros((4, 2), np.int64)}).classes is None


def test_classes_count_the_evaluation_labels_too_and_may_be_given():
    assert from_arrays({"x": x, "y": y}, {"x": x, "y": y + 4}).classes == 7
    assert Source({"x": x, "y": y}, classes=10).classes == 10


def test_strided_and_foreign_arrays_are_made_plain():
    source = from_arrays({"x": np.asfortranarray(x).astype(">f4"), "z": np.arange(8)[::2]})
    assert source.train["x"].dtype == np.float32
    assert source.train["x"].dtype.isnative
    assert all(array.flags.c_contiguous for array in source.train.values())
    np.testing.assert_array_equal(source.train["x"], x)
    np.testing.assert_array_equal(source.train["z"], [0, 2, 4, 6])


def test_dtype_converts_floats_alone():
    data = {"x": x.astype(np.float64), "h": x.astype(np.float16), "y": y, "pixels": x.astype(np.uint8), "m": y > 1}
    kept = {name: str(array.dtype) for name, array in from_arrays(data).train.items()}
    assert kept == {"x": "float64", "h": "float16", "y": "int64", "pixels": "uint8", "m": "bool"}
    converted = {name: str(array.dtype) for name, array in from_arrays(data, dtype="float32").train.items()}
    assert converted == kept | {"x": "float32", "h": "float32"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, "data.train: there are no arrays; give at least one"),
        ({"x": x[:0]}, r"data.train: array 'x' is empty, its shape is \(0, 3\); give at least one sample"),
        ({"x": x, "y": y[:3]}, r"data.train: arrays differ in their number of samples \(x 4, y 3\)"),
        ({"x": np.float32(3)}, "data.train: array 'x' is a single value, expected a leading sample axis"),
        ({"x": np.array([1, "a"], object)}, "data.train: array 'x' has dtype object, expected integers, booleans or f"),
        ({"x": ["a", "b"]}, "array 'x' has dtype <U1, .*; convert it to numbers"),
        ({"x": x.astype(np.complex64)}, "array 'x' has dtype complex64"),
        ({"x": [[1, 2], [3]]}, "data.train: array 'x' is ragged; make all samples the same shape"),
        (
            {"x": x, "y": np.array([0, 1, -1, -2])},
            "data.train: 'y' of sample 2 is the label -1; number the classes",
        ),
        ({3: x}, "data.train: expected names of arrays, got 3"),
        (x, "data.train: expected a dict of arrays, got ndarray"),
    ],
)
def test_training_arrays_that_do_not_fit(train, message):
    refused(message, train)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is float64 here")
def test_long_double_is_refused():
    refused("array 'x' has dtype .*; convert it to float32 or float64", {"x": x.astype(np.longdouble)})


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"x": x}, "data.eval: has the arrays x, data.train has x, y; give both the same arrays"),
        ({"x": x[:, :2], "y": y}, r"data.eval: a sample of 'x' is float32 \(2,\), in data.train it is float32 \(3,\)"),
        ({"x": x.astype(np.float64), "y": y}, r"a sample of 'x' is float64 \(3,\), in data.train it is float32"),
        ({"x": x, "y": y[:1]}, "data.eval: arrays differ in their number of samples"),
    ],
)
def test_evaluation_arrays_that_do_not_fit(evaluation, message):
    refused(message, {"x": x, "y": y}, evaluation)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sample", [0, 1, 9_999, 65_536, 99_999])
def test_values_that_are_not_finite_are_named(value, sample):
    data = np.zeros((100_000, 4), np.float32)
    data[sample, 2] = value
    refused(f"data.train: 'x' of sample {sample} is {value} at \\[2\\]; remove the sample or fill in", {"x": data})
    Source({"x": data})  # checks no values, for they may be in a file of any size


def test_values_of_the_evaluation_set_and_of_vectors_are_checked():
    bad = np.array([0.0, 1.0, np.nan, np.inf])
    refused("data.eval: 't' of sample 2 is nan; remove", {"t": np.zeros(4)}, {"t": bad})
    refused("data.eval: 't' of sample 2 is nan; remove", Source({"t": np.zeros(4)}, {"t": bad}), make=check_finite)
