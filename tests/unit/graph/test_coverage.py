"""Every public function of NumPy is covered, or says what to use instead; nothing loses a gradient in silence."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import TraceError, UnsupportedFunctionError
from tests.coverage_table import PAGE, dispatched_functions, is_covered

X = np.array([[2.0, 1.0], [1.0, 3.0]])
NOT_COVERED = {name: f for name, f in dispatched_functions().items() if not is_covered(f)}


def test_the_walk_finds_functions_of_each_module():
    found = dispatched_functions()
    assert {"np.exp", "np.sum", "np.linalg.svd", "np.linalg.eig", "np.fft.rfft", "np.roots"} <= set(found)
    assert found["np.roots"] is np.roots


@pytest.mark.parametrize("name", sorted(NOT_COVERED))
def test_a_function_that_is_not_covered_names_itself_and_the_nearest(name):
    function = NOT_COVERED[name]
    module = name.rpartition(".")[0]

    def called(x):
        for count in range(1, 6):  # the dispatch comes first; a wrong number of arguments is a TypeError
            try:
                return function(*[x] * count)
            except TraceError:
                raise
            except TypeError:
                pass
        raise AssertionError("no number of arguments is right")

    said = (
        re.escape(f"{module}.{function.__name__} is not covered") + r".* at .*test_coverage\.py:\d+; (?!write it with)"
    )
    with pytest.raises(UnsupportedFunctionError, match=said):
        graph.trace(called, X)


@pytest.mark.parametrize(
    "function",
    [
        *(np.array, np.asarray, np.asanyarray, np.ascontiguousarray, np.asfortranarray, np.asarray_chkfinite),
        *(lambda x: np.require(x), lambda x: np.full(2, x), lambda x: np.fromiter(x[0], float)),
        *(lambda x: np.r_[x, x], lambda x: np.c_[x, x], lambda x: np.vectorize(np.exp)(x)),
    ],
)
def test_what_makes_a_plain_array_is_refused(function):
    with pytest.raises(TraceError, match=r"of a traced array at .*it would lose|NumPy would lose the gradient"):
        graph.trace(function, X)


def test_the_table_of_the_documentation_is_true_of_dtrain():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (yes|no) \|", PAGE.read_text(encoding="utf-8"), re.M))
    functions = dispatched_functions()
    assert {name for name, f in functions.items() if is_covered(f)} - set(rows) == set(), (
        "covered, but not in the table"
    )
    said = {name: answer for name, answer in rows.items() if name in functions}
    assert said == {name: "yes" if is_covered(functions[name]) else "no" for name in said}
    totals = re.findall(r"\*\*(?:of )?(\d+)\*\*", PAGE.read_text(encoding="utf-8"))
    assert [int(n) for n in totals[:2]] == [len(rows), sum(answer == "yes" for answer in rows.values())]
