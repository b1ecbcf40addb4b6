"""What a user meets who does what cannot be recorded: one line, the place, the remedy."""

from __future__ import annotations

import copy
import importlib
import math

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import ShapeError, TraceError, UnsupportedFunctionError

X = np.ones((2, 3))


def line(f, offset=1):
    return rf"test_errors\.py:{f.__code__.co_firstlineno + offset}\b"


def test_shapes_that_do_not_fit_name_the_operation_both_shapes_and_the_line():
    def f(x):
        return np.sum(x @ np.ones((128, 10)))

    with pytest.raises(
        ShapeError, match=r"matmul: expected \(n, 64\) @ \(64, k\), got \(32, 64\) @ \(128, 10\); made at .*" + line(f)
    ):
        graph.grad(f)(np.ones((32, 64)))

    def g(x):
        return np.sum(x + np.ones(4))

    with pytest.raises(
        ShapeError, match=r"add: expected shapes that broadcast together, got \(2, 3\), \(4,\); made at .*" + line(g)
    ):
        graph.grad(g)(X)

    def h(x):
        return np.sum(np.reshape(x, (4, 2)))

    with pytest.raises(
        ShapeError, match=r"reshape: expected a shape that fits shape=\(4, 2\), got \(2, 3\); made at .*" + line(h)
    ):
        graph.grad(h)(X)

    def c(x):
        return np.sum(np.concatenate([x, np.ones((1, 4))]))

    with pytest.raises(
        ShapeError, match=r"concatenate: expected shapes equal except along axis 0, got \(2, 3\), \(1, 4\)"
    ):
        graph.grad(c)(X)


def test_an_index_out_of_bounds():
    with pytest.raises(ShapeError, match=r"slice: .* got \(2, 3\); made at"):
        graph.grad(lambda x: np.sum(x[5]))(X)
    with pytest.raises(ShapeError, match=r"gather: .*made at"):
        graph.grad(lambda x: np.sum(x[np.array([0, 2])]))(X)
    recorded = graph.trace(lambda x, i: x[i], X, np.array([0, 1]))
    bound = graph.Plan(recorded.inputs, recorded.outputs).bind([X, np.array([0, 7])])
    with pytest.raises(IndexError, match="rows 0 to 7 of an array of 2"):
        bound.run()


def test_an_uncovered_function_is_named():
    def f(x):
        return np.sum(np.roots(x[0]))

    with pytest.raises(UnsupportedFunctionError, match=r"np\.roots is not covered: .* used at .*" + line(f)):
        graph.grad(f)(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.unique is not covered: .*its shape depends on values"):
        graph.grad(lambda x: np.sum(np.unique(x)))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.linalg\.svd of shape \(2, 3\) .*pass full_matrices=False"):
        graph.grad(lambda x: np.sum(np.linalg.svd(x)[0]))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.i0 is not covered"):
        graph.grad(lambda x: np.sum(np.i0(x)))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.spacing is not covered"):
        graph.grad(lambda x: np.sum(np.spacing(x)))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.add\.reduceat is not covered"):
        graph.grad(lambda x: np.sum(np.add.reduceat(x, [0])))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.exp with where= is not covered"):
        graph.grad(lambda x: np.sum(np.exp(x, where=X > 0)))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"ndarray\.byteswap is not covered"):
        graph.grad(lambda x: np.sum(x.byteswap()))(X)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        graph.grad(lambda x: x.nonsense())(X)


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda x: 1.0 if x[0, 0] > 0 else 2.0, "the truth value"),
        (lambda x: int(np.argmax(x)), r"int\(\)"),
        (lambda x: np.argmax(x).item(), r"item\(\)"),
        (lambda x: sum(np.argsort(x)[0].tolist()), r"tolist\(\)"),
        (lambda x: [1.0, 2.0][np.argmax(x)], "a Python index"),
    ],
)
def test_python_on_a_traced_value(use, what):
    with pytest.raises(
        TraceError, match=what + r" of a traced array at .*" + line(use, 0) + r".*use np\.where, .*compile=False"
    ):
        graph.grad(use)(X)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda x: float(x[0, 0]), r"float\(\)"),
        (lambda x: math.sin(x[0, 0]), r"float\(\)"),
        (lambda x: np.zeros(3).__setitem__(0, x[0, 0]), r"float\(\)"),
        (lambda x: np.zeros(3, np.float32).__setitem__(0, x[0, 0]), r"float\(\)"),
        (lambda x: complex(x[0, 0]), r"complex\(\)"),
        (lambda x: np.zeros(3, complex).__setitem__(0, x[0, 0]), r"complex\(\)"),
        (lambda x: np.zeros(3).__setitem__(slice(None), x[0]), r"np\.array\(\) or np\.asarray\(\)"),
        (lambda x: np.array([x[0, 0], x[0, 1]]), r"np\.array\(\) or np\.asarray\(\)"),
    ],
)
def test_a_plain_number_or_array_of_a_traced_one(use, what, compiled):
    with pytest.raises(
        TraceError, match=what + r" of a traced array at .*" + line(use, 0) + r".*np\.stack.*np\.zeros_like\(x\)"
    ):
        graph.grad(lambda x: use(x) or np.sum(x), compile=compiled)(X)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x: np.sum([x, x]), r"the conversion in np\.sum of .*stack a list first, np\.sum\(np\.stack\(list\)\)"),
        (lambda x: np.linalg.norm([x, x]), r"the conversion in np\.linalg\.norm of .*np\.linalg\.norm\(np\.stack"),
        (lambda x: np.sum(np.r_[x[0], x[1]]), r"the conversion in np\.r_ of .*use np\.concatenate"),
        (lambda x: np.sum(np.full(3, x[0, 0])), r"the conversion in np\.full of .*use np\.broadcast_to"),
    ],
)
def test_a_function_of_a_list_of_traced_arrays(use, message):
    with pytest.raises(TraceError, match=message):
        graph.grad(use)(X)


def test_losing_the_gradient():
    with pytest.raises(
        TraceError, match=r"np\.asarray\(\) of a traced array at .*test_errors.py:\d+: it would lose the gradient"
    ):
        graph.grad(lambda x: np.sum(np.asarray(x)))(X)


def test_writing_into_arrays():
    def part(x):
        x[0] = 1.0
        return np.sum(x)

    with pytest.raises(TraceError, match="assignment to .*an argument.* at .*" + line(part) + r".*use x = x\.copy"):
        graph.grad(part)(X)

    def plain(x):
        total = np.zeros((2, 3))
        total += x
        return np.sum(total)

    with pytest.raises(TraceError, match=r"in-place operator such as a \+= b .*in np\.add.*" + line(plain, 2)):
        graph.grad(plain)(X)
    with pytest.raises(TraceError, match=r"out= .*in np\.exp"):
        graph.grad(lambda x: np.sum(np.exp(x, out=np.empty((2, 3)))))(X)
    with pytest.raises(TraceError, match=r"out= in np\.sum"):
        graph.grad(lambda x: np.sum(x, out=np.empty(())))(X)


def test_shapes_that_depend_on_values():
    with pytest.raises(TraceError, match=r"a traced boolean mask as an index .*use np\.where\(mask, x, 0\)"):
        graph.grad(lambda x: np.sum(x[x > 0]))(X)
    np.testing.assert_array_equal(graph.grad(lambda x: np.sum(x[x > 0]), compile=False)(np.array([1.0, -1])), [1, 0])
    for function in (np.where, np.nonzero, np.argwhere, np.flatnonzero):
        with pytest.raises(TraceError, match=r"np\.nonzero of a traced array at .*use np\.where\(mask, x, 0\)"):
            graph.grad(lambda x, f=function: np.sum(x[f(x > 0)]))(X)
    taken = {
        "nonzero": lambda x: x[np.nonzero(x > 0)],
        "method": lambda x: x[(x > 0).nonzero()],
        "where": lambda x: x[np.where(x > 0)],
        "argwhere": lambda x: x[tuple(np.argwhere(x > 0).T)],
        "flatnonzero": lambda x: x.ravel()[np.flatnonzero(x > 0)],
    }
    for name, function in taken.items():
        found = graph.grad(lambda x, f=function: np.sum(f(x)), compile=False)(np.array([[1.0, -1], [-2, 3]]))
        np.testing.assert_array_equal(found, [[1, 0], [0, 1]], err_msg=name)


def test_what_cannot_be_differentiated():
    with pytest.raises(TraceError, match="respect to argument 0 of type int does not exist; pass floats"):
        graph.grad(lambda x: x * 2.0)(3)
    with pytest.raises(TraceError, match=r"argument 1 \(a\.0\) of type int64 does not exist"):
        graph.grad(lambda x, p: x * 2.0, 1)(3.0, {"a": [np.arange(2)]})

    def f(x):
        return np.exp(x)

    with pytest.raises(TraceError, match=r"f must return a scalar .*got shape \(2, 3\); made at"):
        graph.grad(f)(X)
    with pytest.raises(TraceError, match="must return a float to be differentiated, got int64"):
        graph.grad(lambda x: np.argmax(x))(X)
    with pytest.raises(TraceError, match=r"must return \(value, aux\) with has_aux=True"):
        graph.grad(lambda x: np.sum(x), has_aux=True)(X)


def test_wrong_calls():
    with pytest.raises(
        TraceError, match=r"argument 1 \(name\) is an array of <U3: neither an array of numbers nor a static"
    ):
        graph.grad(lambda x, b: x)(1.0, {"name": np.array(["cat"])})
    with pytest.raises(TraceError, match="argument 1 is set: neither"):
        graph.grad(lambda x, b: x)(1.0, {1})
    with pytest.raises(TypeError, match=r"argnums names argument 2, but .* was called with 1"):
        graph.grad(lambda x: x, 2)(1.0)
    with pytest.raises(TypeError, match=r"argnums names argument 0, but .* was called with 0"):
        graph.grad(lambda x: x)(x=1.0)


def test_a_tensor_that_outlives_its_trace():
    kept = []

    def f(x):
        kept.append(x)
        return np.sum(x)

    graph.grad(f)(X)
    with pytest.raises(TraceError, match="no longer kept: this graph belongs to a compiled function"):
        _ = kept[0].value
    with pytest.raises(TraceError, match="traced array after its trace had ended"):
        graph.grad(f)(kept[0])
    with pytest.raises(TraceError, match="mixes arrays of two traced functions"):
        graph.grad(lambda x: np.sum(x * kept[0]))(X)


@pytest.mark.parametrize(
    ("module", "call", "name"),
    [
        ("special", lambda m, x: m.logsumexp(x), "special.logsumexp"),
        ("special", lambda m, x: m.polygamma(1, x), "special.polygamma"),
        ("signal", lambda m, x: m.convolve(x, x), "signal.convolve"),
        ("linalg", lambda m, x: m.solve_triangular(x, x), "linalg.solve_triangular"),
        ("linalg", lambda m, x: m.sqrtm(x), "linalg.sqrtm"),
        ("stats", lambda m, x: m.norm.logpdf(x), "stats.norm.logpdf"),
        ("stats", lambda m, x: m.norm(0.0, 2.0).pdf(x), "stats.norm.pdf"),
        ("stats", lambda m, x: m.multivariate_normal(np.zeros(2)).logpdf(x), "stats.multivariate_normal.logpdf"),
    ],
)
def test_functions_of_scipy_that_are_not_ufuncs_name_the_ones_to_use(module, call, name):
    library = pytest.importorskip(f"scipy.{module}")

    def f(x):
        return np.sum(call(library, x))

    said = rf"scipy\.{name} is not covered: .* at .*test_errors\.py:\d+; use dtrain\.scipy\.{name}, or"
    with pytest.raises(UnsupportedFunctionError, match=said):
        graph.grad(f)(np.eye(2))
    found = importlib.import_module(f"dtrain.scipy.{module}")
    for part in name.split(".")[1:]:
        found = getattr(found, part)


def test_a_function_of_scipy_without_a_counterpart_is_named():
    special, signal = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.signal")
    with pytest.raises(UnsupportedFunctionError, match=r"scipy\.special\.ellipk is not covered"):
        graph.grad(lambda x: np.sum(special.ellipk(x)))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"scipy\.signal\.hilbert is not covered"):
        graph.grad(lambda x: np.sum(signal.hilbert(x)))(X)


def test_a_derivative_that_is_not_known_is_an_error_and_not_zero():
    special = pytest.importorskip("scipy.special")

    def f(order, x):
        return special.jv(order, x)

    with pytest.raises(
        UnsupportedFunctionError, match=r"scipy\.special\.jv with respect to its order is not covered.*" + line(f)
    ):
        graph.grad(f, 0)(2.0, 1.5)
    expected = 0.5 * (special.jv(1.0, 1.5) - special.jv(3.0, 1.5))
    assert graph.grad(f, 1)(2.0, 1.5) == pytest.approx(expected, rel=1e-14)
    held = graph.grad(lambda v: special.jv(graph.stop_gradient(v), 0.75 * v))(2.0)
    assert held == pytest.approx(0.75 * expected, rel=1e-14)


def test_what_cannot_be_recorded_is_a_type_error_too():
    with pytest.raises(TypeError, match="must return a real number"):
        graph.grad(lambda x: x * 1j)(1.0)


def test_a_mistake_below_an_optimizer_of_scipy_is_the_users():
    optimize = pytest.importorskip("scipy.optimize")

    def f(x):
        return np.sum(np.asarray(x))

    with pytest.raises(TraceError, match=r"np\.asarray\(\) of a traced array at .*" + line(f)):
        optimize.minimize(lambda x: 0.0, np.ones(2), jac=graph.grad(f))


def test_linear_algebra_without_a_solution_names_the_line():
    def f(x):
        return np.sum(np.linalg.inv(x))

    with pytest.raises(np.linalg.LinAlgError, match=r"inv: Singular matrix; made at .*" + line(f)):
        graph.grad(f)(np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"inv: expected square matrices \(…, n, n\), got \(2, 3\); made at"):
        graph.grad(f)(X)
    with pytest.raises(ShapeError, match=r"solve: expected \(…, n, n\) and .*got \(2, 3\), \(2, 1\)"):
        graph.grad(lambda x: np.sum(np.linalg.solve(x, x[:, 0])))(X)
    with pytest.raises(ShapeError, match="convolve: expected two sequences"):
        graph.grad(lambda x: np.sum(np.convolve(x, x)))(X)
    with pytest.raises(ValueError, match=r"einsum: 'ij' of 'ij,j' names 2 axes of shape \(3,\)"):
        graph.grad(lambda x: np.sum(np.einsum("ij,j", x[0], x[0])))(X)


def test_a_condition_that_is_traced_has_no_shape():
    with pytest.raises(TraceError, match=r"np\.compress by a traced condition .*use np\.where"):
        graph.grad(lambda x: np.sum(np.compress(x[0] > 0, x, axis=1)))(X)
    with pytest.raises(TraceError, match=r"np\.extract by a traced condition"):
        graph.grad(lambda x: np.sum(np.extract(x > 0, x)))(X)
    with pytest.raises(UnsupportedFunctionError, match=r"np\.bincount of traced places"):
        graph.grad(lambda x: np.sum(np.bincount(np.argmax(x, axis=1))))(X)


NUMBERS = {
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "complex": lambda x: complex(x[0]).real,
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist()[0],
    "math.trunc": lambda x: math.trunc(x[0]),
    "math.exp": lambda x: math.log(math.exp(x[0])),
    "np.asarray": lambda x: np.asarray(x)[0],
    "np.float64": lambda x: np.float64(x[0]),
    "of a loop": lambda x: float(graph.scan(lambda c, v: (c + v, None), 0 * x[0], x[:1])[0]),
    "into integers": lambda x: into(np.zeros(2, int), x)[0],
    "into floats": lambda x: into(np.zeros(2), x)[0],
    "all into integers": lambda x: into(np.zeros(2, int), x, slice(None))[0],
}


def into(array, x, index=0):
    array[index] = x[index]
    return array


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_loses_the_gradient_is_an_error_unless_the_gradient_is_stopped(name):
    x, function = np.array([1.5, 2.5]), NUMBERS[name]
    for compiled in (True, False):
        with pytest.raises(
            TraceError, match=r"of a traced array at test_errors|of a traced array at .*lose the gradient"
        ):
            graph.grad(lambda x: function(x) * x[1], compile=compiled)(x)
    found = graph.grad(lambda x: function(graph.stop_gradient(2 * x)) * x[1], compile=False)(x)
    np.testing.assert_allclose(found, [0, 3], rtol=1e-14)


def test_what_has_no_gradient_is_a_plain_number_with_compile_false():
    x = np.array([1.5, 2.5])
    assert graph.grad(lambda x: x[int(np.argmax(x))], compile=False)(x).tolist() == [0, 1]
    assert graph.grad(lambda x: np.sum(np.asarray(np.argsort(-x)) * x), compile=False)(x).tolist() == [1, 0]
    with pytest.raises(TraceError, match="its value may differ in the next call"):
        graph.grad(lambda x: x[int(np.argmax(x))] * [1.0, 2.0][np.argmax(x)])(x)


def test_a_traced_array_is_formatted_and_copied_as_an_array_is():
    said = []

    def f(x):
        said.append(f"{x[0]:.2f} {x.sum():5.1f} {x}")
        return np.sum(copy.copy(x) * copy.deepcopy(x))

    np.testing.assert_array_equal(graph.grad(f)(np.array([1.5, 2.5])), [3, 5])
    assert said == ["1.50   4.0 Tensor(alias, shape=(2,), dtype=float64, value=[1.5 2.5])"]


def test_one_element_is_a_scalar_as_in_autograd():
    value, gradient = graph.value_and_grad(lambda x: np.sum(x * x, keepdims=True))(np.array([1.0, 2.0]))
    assert value.shape == (1,)
    np.testing.assert_array_equal(gradient, [2, 4])
    with pytest.raises(TraceError, match=r"must return a scalar .*got shape \(2,\); made at"):
        graph.grad(lambda x: x * x)(np.array([1.0, 2.0]))


def test_a_transform_of_real_numbers_takes_each_axis_once():
    for f in (np.fft.rfftn, np.fft.irfftn):
        with pytest.raises(ValueError, match="takes each axis once; call the one-dimensional ones"):
            graph.trace(lambda x, f=f: np.abs(f(x, axes=(0, 0))), np.ones((4, 4)))
