"""The tasks of the Neural Turing Machine paper: what is shown, what is asked, and that it can be answered."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dtrain.data import make_source
from dtrain.errors import InputError


def task(name, **options):
    options = {"sequences": 40, "held_out": 8, **options}
    return make_source(name, **options)


@pytest.mark.parametrize("name", ["copy", "repeat-copy", "associative-recall", "n-grams", "priority-sort"])
def test_a_task_is_a_function_of_its_seed(name):
    first, again, other = task(name), task(name), task(name, seed=1)
    for key, array in first.train.items():
        np.testing.assert_array_equal(array, again.train[key])
    assert not np.array_equal(first.train["x"], other.train["x"])
    assert not np.array_equal(first.train["x"][:8], first.eval["x"])
    assert (first.n, first.n_eval) == (40, 8)
    assert first.train["x"].shape[:2] == first.train["y"].shape[:2] == first.train["asked"].shape
    assert not first.train["y"][first.train["asked"] == 0].any()


def test_copy_asks_for_what_was_shown():
    arrays = task("copy", shortest=2, longest=5).train
    lengths = arrays["asked"].sum(axis=1)
    assert set(lengths.tolist()) == {2, 3, 4, 5}
    for x, y, asked, n in zip(arrays["x"], arrays["y"], arrays["asked"], lengths, strict=True):
        assert np.flatnonzero(x[:, 8]).tolist() == [n]
        assert np.flatnonzero(asked).tolist() == list(range(n + 1, 2 * n + 1))
        np.testing.assert_array_equal(x[:n, :8], y[n + 1 : 2 * n + 1])
        assert not x[n + 1 :].any()
    assert arrays["x"].dtype == np.uint8
    assert abs(float(arrays["y"][arrays["asked"] > 0].mean()) - 0.5) < 0.1


def test_repeat_copy_asks_so_often_and_for_an_end():
    arrays = task("repeat-copy", longest=3, most_repeats=4).train
    for x, y, asked in zip(arrays["x"], arrays["y"], arrays["asked"], strict=True):
        (n,) = np.flatnonzero(x[:, 9])
        times = round(float(x[n, 8]) * np.arange(1, 11).std() + 5.5)
        end = n + 1 + n * times
        np.testing.assert_array_equal(y[n + 1 : end, :8], np.tile(x[:n, :8], (times, 1)))
        assert y[end].tolist() == [0] * 8 + [1]
        assert np.flatnonzero(asked).tolist() == list(range(n + 1, end + 1))
    assert arrays["x"].dtype == np.float32


def test_associative_recall_asks_for_the_item_behind_the_one_that_is_named():
    arrays = task("associative-recall").train
    for x, y, asked in zip(arrays["x"], arrays["y"], arrays["asked"], strict=True):
        starts, (query, end) = np.flatnonzero(x[:, 6]), np.flatnonzero(x[:, 7])
        items = [x[s + 1 : s + 4, :6] for s in starts]
        assert 2 <= len(items) <= 6
        named = x[query + 1 : end, :6]
        answers = [after for item, after in itertools.pairwise(items) if np.array_equal(item, named)]
        assert any(np.array_equal(y[end + 1 : end + 4], answer) for answer in answers)
        assert np.flatnonzero(asked).tolist() == [end + 1, end + 2, end + 3]


def test_n_grams_give_the_next_bit_and_the_loss_of_the_best_guess():
    source = task("n-grams", sequences=400)
    x, y, asked = (source.train[k] for k in ("x", "y", "asked"))
    np.testing.assert_array_equal(x[:, 5:], y[:, 4:-1])
    assert asked.sum(axis=1).tolist() == [195] * 400
    bits = source.train["optimum"] / math.log(2)
    assert abs(bits.mean() - 128.3) < 4 * bits.std() / 20
    counts = {}
    sequence, nats = np.append(x[0, :, 0], y[0, -1, 0]), 0.0
    for t in range(5, 200):
        seen = counts.setdefault(tuple(sequence[t - 5 : t]), [0.5, 0.5])
        nats -= math.log(seen[sequence[t]] / sum(seen))
        seen[sequence[t]] += 1
    assert source.train["optimum"][0] == pytest.approx(nats, rel=1e-6)


def test_priority_sort_asks_for_the_vectors_of_highest_priority():
    arrays = task("priority-sort", vectors=5, given=3).train
    for x, y in zip(arrays["x"], arrays["y"], strict=True):
        order = sorted(range(5), key=lambda i: -x[i, 8])[:3]
        np.testing.assert_array_equal(y[5:], x[order, :8])
        assert x[:, 9].tolist() == [1] * 5 + [0] * 3


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("copy", {"shortest": 9, "longest": 8}, r"data\.shortest: expected at most the 8 of data\.longest, got 9"),
        ("repeat-copy", {"fewest_repeats": 9, "most_repeats": 8}, r"data\.fewest_repeats: expected at most the 8"),
        ("associative-recall", {"fewest": 7}, r"data\.fewest: expected at most the 6 of data\.most, got 7"),
        ("n-grams", {"length": 5}, r"data\.length: expected more than the 5 bits of a context, got 5"),
        ("priority-sort", {"given": 21}, r"data\.given: expected at most the 20 vectors, got 21"),
    ],
)
def test_a_mistake_is_one_line(name, options, said):
    with pytest.raises(InputError, match=said):
        task(name, **options)
