"""dtrain.scipy against SciPy itself: values, borders of the support, arguments, errors. Gradients are in the table."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.signal
import scipy.special
import scipy.stats

import dtrain
from dtrain import graph
from dtrain.errors import ShapeError, TraceError, UnsupportedFunctionError
from dtrain.scipy import integrate, linalg, signal, special, stats

rng = np.random.default_rng(5)
X = np.concatenate([rng.uniform(0.05, 0.95, 5), [-0.5, 0.0, 1.0, 1.75]])
DENSITIES = ("pdf", "logpdf", "cdf", "sf", "logcdf", "logsf")
MATRIX = rng.standard_normal((4, 4))
COVARIANCE = MATRIX @ MATRIX.T + np.eye(4)


def recorded(f, *args):
    return np.asarray(graph.trace(f, *args).outputs[0].value)


def test_every_function_stands_in_the_table_of_operations():
    rows = (Path(__file__).parents[2] / "ops_rows" / "scipy_functions.py").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", rows))
    for module in (integrate, linalg, signal, special, stats):
        assert module.__all__ == sorted(module.__all__)
        assert set(module.__all__) <= named


def test_importing_dtrain_does_not_import_scipy():
    code = "import dtrain, sys; print('scipy' in sys.modules, dtrain.scipy.special.__name__, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "dtrain.scipy.special", "True"]


def test_without_scipy_it_says_what_to_install():
    code = "import sys; sys.modules['scipy'] = None; import dtrain; dtrain.scipy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("ImportError: dtrain.scipy needs SciPy: pip install scipy")


def test_an_operation_of_scipy_arrives_in_a_process_that_has_not_used_it():
    code = "import pickle, sys, dtrain.graph; print(pickle.loads(sys.stdin.buffer.read()))"
    graph.trace(scipy.special.erf, X)
    for name in ("expm", "erf"):
        sent = pickle.dumps(graph.PRIMITIVES[name])
        done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
        assert done.stdout.decode().strip() == f"<primitive {name}>"


def test_what_is_not_defined_here_is_scipys():
    assert special.expit is scipy.special.expit
    assert stats.norm.ppf(0.5) == 0.0
    assert stats.gamma(2.0).mean() == 2.0
    assert linalg.lu is scipy.linalg.lu
    assert signal.get_window is scipy.signal.get_window


@pytest.mark.parametrize("method", DENSITIES)
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("norm", ()), ("t", (2.5,)), ("laplace", ()), ("logistic", ()), ("cauchy", ()), ("uniform", ()), ("expon", ()),
        ("gamma", (2.25,)), ("chi2", (2.5,)), ("beta", (1.5, 2.25)), ("lognorm", (0.75,)),
    ],
)  # fmt: skip
def test_densities_are_scipys_in_and_outside_of_the_support(name, shapes, method):
    ours, theirs = getattr(getattr(stats, name), method), getattr(getattr(scipy.stats, name), method)
    with np.errstate(divide="ignore"):
        for given in ({}, {"loc": 0.125, "scale": 1.5}):
            expected = theirs(X, *shapes, **given)
            np.testing.assert_allclose(ours(X, *shapes, **given), expected, rtol=1e-12)
            np.testing.assert_allclose(recorded(lambda x, g=given: ours(x, *shapes, **g), X), expected, rtol=1e-12)
        slope = graph.grad(lambda x: np.sum(ours(x, *shapes)))(X[np.abs(X) > 0.01][:6])
        assert ours(X.astype(np.float32), *shapes, scale=2.0).dtype == np.float32
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("method", ["pmf", "logpmf", "cdf", "sf"])
@pytest.mark.parametrize(("name", "shapes"), [("poisson", (1.75,)), ("binom", (4, 0.25)), ("bernoulli", (0.25,))])
def test_discrete_distributions_are_scipys(name, shapes, method):
    k = np.array([0, 1, 2, 5, -1, 1.5]) if method != "cdf" else np.array([0, 1, 2, 5, -1])
    ours, theirs = getattr(getattr(stats, name), method), getattr(getattr(scipy.stats, name), method)
    np.testing.assert_allclose(ours(k, *shapes, loc=1), theirs(k, *shapes, loc=1), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(recorded(lambda k: ours(k, *shapes), k), theirs(k, *shapes), rtol=1e-12, atol=1e-15)


def test_parameters_of_a_distribution_that_are_missing_or_unknown():
    with pytest.raises(TypeError, match="gamma needs a"):
        stats.gamma.pdf(X)
    with pytest.raises(TypeError, match="norm takes x, loc, scale"):
        stats.norm.pdf(X, mu=1.0)
    with pytest.raises(UnsupportedFunctionError, match=r"derivative of scipy\.special\.gammainc with respect to a"):
        graph.grad(lambda a: stats.gamma.cdf(1.0, a))(2.0)


@pytest.mark.parametrize("allow_singular", [False, True])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_multivariate_normal_is_scipys(shape, allow_singular):
    x, mean = rng.standard_normal(shape), rng.standard_normal(4)
    for cov in (COVARIANCE, np.array([1.0, 2.0, 3.0, 0.5]), 2.0):
        expected = scipy.stats.multivariate_normal.logpdf(x, mean, cov, allow_singular)
        found = recorded(lambda x, c=cov: stats.multivariate_normal.logpdf(x, mean, c, allow_singular), x)
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_multivariate_normal_of_one_coordinate_and_of_a_singular_matrix():
    for x in (rng.standard_normal(5), np.array([1.0]), np.array(1.0)):
        found = recorded(lambda x: stats.multivariate_normal.pdf(x, 0.25, 2.0), x)
        np.testing.assert_allclose(found, scipy.stats.multivariate_normal.pdf(x, 0.25, 2.0), rtol=1e-13, strict=True)
    flat = np.diag([1.0, 2.0, 0.0])
    for x in (np.array([1.0, 2.0, 0.0]), np.array([1.0, 2.0, 0.125])):
        found = recorded(lambda x: stats.multivariate_normal.logpdf(x, None, flat, True), x)
        np.testing.assert_allclose(found, scipy.stats.multivariate_normal.logpdf(x, None, flat, True), rtol=1e-12)
    with pytest.raises(np.linalg.LinAlgError, match=r"cholesky: .*positive definite; made at"):
        graph.grad(lambda c: stats.multivariate_normal.logpdf(np.zeros(3), None, c))(flat)


def test_dirichlet_is_scipys():
    alpha = np.array([1.25, 2.0, 0.75])
    x = rng.dirichlet(alpha, 4).T
    np.testing.assert_allclose(
        recorded(stats.dirichlet.logpdf, x, alpha), scipy.stats.dirichlet.logpdf(x, alpha), rtol=1e-12
    )
    np.testing.assert_allclose(
        recorded(stats.dirichlet.pdf, x[:2], alpha), scipy.stats.dirichlet.pdf(x[:2], alpha), rtol=1e-12
    )


@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
def test_logsumexp_is_scipys(axis):
    a, b = rng.standard_normal((3, 4)), rng.uniform(0.5, 2.0, (3, 4))
    b[0, 1] = 0.0
    a[0, 1] = 800.0
    for options in ({}, {"b": b}, {"b": b, "keepdims": True}):
        expected = scipy.special.logsumexp(a, axis=axis, **options)
        np.testing.assert_allclose(special.logsumexp(a, axis=axis, **options), expected, rtol=1e-13)
        found = recorded(lambda a, o=options: special.logsumexp(a, axis=axis, **o), a)
        np.testing.assert_allclose(found, expected, rtol=1e-13, strict=True)
    signed = special.logsumexp(a, axis=axis, b=-b, return_sign=True)
    for ours, theirs in zip(signed, scipy.special.logsumexp(a, axis=axis, b=-b, return_sign=True), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_polygamma_and_multigammaln_are_scipys():
    x = rng.uniform(1.5, 4.0, 4)
    for n in (0, 1, 4, [0, 1, 2, 3]):
        np.testing.assert_allclose(special.polygamma(n, x), scipy.special.polygamma(n, x), rtol=1e-13)
    np.testing.assert_allclose(special.multigammaln(x, 3), scipy.special.multigammaln(x, 3), rtol=1e-13)
    with pytest.raises(ValueError, match=r"a must be above \(d - 1\)/2 = 1"):
        special.multigammaln(1.0, 3)
    with pytest.raises(UnsupportedFunctionError, match="polygamma of a traced order"):
        graph.grad(lambda n: special.polygamma(n, 2.0))(1.0)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("name", ["convolve", "correlate", "fftconvolve"])
def test_convolutions_are_scipys(name, mode):
    ours, theirs = getattr(signal, name), getattr(scipy.signal, name)
    for first, second in (((7,), (3,)), ((3,), (6,)), ((4, 5), (2, 3)), ((2, 3), (4, 5)), ((4, 5, 3), (2, 2, 2))):
        a, b = rng.standard_normal(first), rng.standard_normal(second)
        np.testing.assert_allclose(ours(a, b, mode), theirs(a, b, mode), atol=1e-12)
        np.testing.assert_allclose(ours(a + 2j * a, b - 1j * b, mode), theirs(a + 2j * a, b - 1j * b, mode), atol=1e-12)


def test_convolutions_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"convolve at .*test_scipy\.py:\d+: expected two arrays of as many axes"):
        signal.convolve(np.ones((2, 2)), np.ones(2))
    with pytest.raises(ShapeError, match="in mode valid one array is the larger along every axis"):
        graph.grad(lambda x: np.sum(signal.convolve(x, np.ones((1, 4)), "valid")))(np.ones((2, 2)))
    with pytest.raises(ValueError, match="mode is full, same or valid, got 'all'"):
        signal.correlate(np.ones(2), np.ones(2), "all")
    with pytest.raises(ValueError, match="axes= of a part of the axes"):
        signal.fftconvolve(np.ones((2, 2)), np.ones((2, 2)), axes=0)


@pytest.mark.parametrize("trans", [0, "T", 2])
@pytest.mark.parametrize("lower", [False, True])
def test_triangular_and_banded_systems_are_scipys(trans, lower):
    for b in (MATRIX[0], MATRIX[:, :2]):
        for unit in (False, True):
            given = {"trans": trans, "lower": lower, "unit_diagonal": unit}
            found = recorded(lambda a, b, g=given: linalg.solve_triangular(a, b, **g), COVARIANCE, b)
            np.testing.assert_allclose(found, scipy.linalg.solve_triangular(COVARIANCE, b, **given), rtol=1e-11)
        bands = (2, 1) if lower else (0, 2)
        ab = np.ones((sum(bands) + 1, 4)) + 4 * np.eye(sum(bands) + 1)[:, bands[1], None]
        found = recorded(lambda ab, b, n=bands: linalg.solve_banded(n, ab, b), ab, b)
        np.testing.assert_allclose(found, scipy.linalg.solve_banded(bands, ab, b), rtol=1e-11)


def test_functions_of_matrices_are_scipys():
    found = recorded(linalg.sqrtm, COVARIANCE)
    np.testing.assert_allclose(found, scipy.linalg.sqrtm(COVARIANCE), rtol=1e-12)
    np.testing.assert_allclose(recorded(linalg.expm, MATRIX), scipy.linalg.expm(MATRIX), rtol=1e-12)
    expected = scipy.linalg.block_diag(MATRIX, 2.0, MATRIX[:2])
    np.testing.assert_array_equal(recorded(lambda a: linalg.block_diag(a, 2.0, a[:2]), MATRIX), expected)
    np.testing.assert_array_equal(linalg.cholesky(COVARIANCE), scipy.linalg.cholesky(COVARIANCE))


def test_a_real_matrix_with_a_complex_root():
    flat = np.diag([1.0, -4.0])

    def f(a):
        return np.sum(np.abs(linalg.sqrtm(a)))

    with pytest.raises(np.linalg.LinAlgError, match=r"root of this real matrix is complex, pass a\.astype\(complex\)"):
        graph.grad(f)(flat)
    by_hand = graph.grad(lambda a: f(a.astype(complex)))(flat)
    np.testing.assert_allclose(by_hand, graph.grad(f, compile=False)(flat), rtol=1e-13)
    np.testing.assert_allclose(np.diagonal(by_hand), [0.5, -0.25], rtol=1e-13)


def test_linear_systems_that_do_not_fit_name_the_shapes_and_the_line():
    with pytest.raises(
        ShapeError, match=r"triangular_solve: expected \(n, n\) and .*got \(4, 4\), \(3, 1\).*test_scipy"
    ):
        graph.trace(lambda a: linalg.solve_triangular(a, a[0, :3]), MATRIX)
    with pytest.raises(ShapeError, match=r"banded_solve: expected 2 diagonals \(2, n\)"):
        graph.trace(lambda a: linalg.solve_banded((1, 0), a, a[0]), MATRIX)
    with pytest.raises(ShapeError, match=r"sylvester_solve: expected \(m, m\), \(n, n\) and \(m, n\)"):
        graph.trace(lambda a: linalg.solve_sylvester(a, a, a[:2]), MATRIX)


def grown(y0, rate, time):
    """The solution of y' = rate·y at a time."""
    times = np.stack([np.zeros_like(time), time])
    return integrate.odeint(lambda y, t, a: a * y, [y0], times, (rate,), rtol=1e-10, atol=1e-12)[-1, 0]


def test_the_derivatives_of_a_differential_equation_are_those_of_its_solution():
    y0, rate, time = 1.5, 0.7, 0.8
    growth = np.exp(rate * time)
    gradient = graph.grad(grown, (0, 1, 2))(y0, rate, time)
    np.testing.assert_allclose(gradient, [growth, y0 * time * growth, y0 * rate * growth], rtol=1e-8)
    mixed = y0 * growth * (1 + rate * time)
    expected = [
        [0.0, time * growth, rate * growth],
        [time * growth, y0 * time**2 * growth, mixed],
        [rate * growth, mixed, y0 * rate**2 * growth],
    ]
    np.testing.assert_allclose(
        graph.hessian(lambda p: grown(p[0], p[1], p[2]))(np.array([y0, rate, time])), expected, rtol=1e-7, atol=1e-8
    )


def test_odeint_takes_trees_of_arguments_and_the_time_first():
    def swing(t, y, p, power):
        return [y[1], -p["k"] * y[0] ** power]

    def f(p, tool):
        times = np.linspace(0.0, 1.0, 4)
        return np.sum(tool.odeint(swing, [1.0, p["v"]], times, (p, 1), tfirst=True, rtol=1e-10, atol=1e-12) ** 2)

    p = {"k": 2.0, "v": 0.25}
    value, found = graph.value_and_grad(lambda p: f(p, integrate))(p)
    assert value == pytest.approx(f(p, scipy.integrate), rel=1e-12)
    for name in p:
        up, down = (f({**p, name: p[name] + h}, scipy.integrate) for h in (1e-4, -1e-4))
        assert found[name] == pytest.approx((up - down) / 2e-4, rel=1e-6)


def test_what_odeint_does_not_take():
    def f(k, **options):
        return integrate.odeint(lambda y, t, k: -k * y, [1.0], [0.0, 1.0], (k,), **options)

    with pytest.raises(TraceError, match=r"odeint at .*test_scipy\.py:\d+: full_output with traced arrays"):
        graph.trace(lambda k: f(k, full_output=True), 1.0)
    for args in ((), (2.0,)):
        with pytest.raises(
            TraceError, match=r"odeint at .*: the function closes over a traced array.*pass it in args="
        ):
            graph.trace(lambda k, a=args: integrate.odeint(lambda y, t, *a: -k * y, [1.0], [0.0, 1.0], a), 1.0)
    with pytest.raises(ShapeError, match=r"odeint: expected a state \(n,\) and times \(m,\), got \(1, 2\), \(2,\)"):
        graph.trace(lambda k: integrate.odeint(lambda y, t: y, k, [0.0, 1.0]), np.ones((1, 2)))


def test_a_model_with_a_density_is_trained_through_the_plan():
    x = rng.standard_normal(200) * 2.0 + 3.0
    step = dtrain.grad(lambda p: -np.mean(stats.norm.logpdf(x, p["mean"], np.exp(p["log_scale"]))))
    p = {"mean": 0.0, "log_scale": 0.0}
    for _ in range(400):
        g = step(p)
        p = {k: p[k] - 0.2 * g[k] for k in p}
    assert p["mean"] == pytest.approx(x.mean(), abs=1e-6)
    assert np.exp(p["log_scale"]) == pytest.approx(x.std(), abs=1e-6)
