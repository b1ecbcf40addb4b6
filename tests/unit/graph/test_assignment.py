"""Item assignment on a traced array."""

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import TraceError

X = np.array([0.3, -1.2, 0.7, 2.0])


def test_assignment_is_recorded_as_a_new_value():
    def f(x):
        u = np.zeros_like(x)
        u[0] = x[0]
        for i in range(1, 4):
            u[i] = u[i - 1] * 0.9 + np.sin(x[i])
        u[np.array([1, 1])] = x[:2] * 2
        u[u < 0] = 0.5
        return u * u

    assert np.array_equal(graph.vjp(f, X)[0], f(X))
    graph.check_grads(f, [X], order=2)


def test_an_older_view_is_refused():
    def f(x):
        u = x.copy()
        view = u[:2]
        u[0] = 3.0
        return np.sum(view)

    with pytest.raises(TraceError, match="older than an assignment"):
        graph.grad(f)(X)
