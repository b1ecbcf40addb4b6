"""Gradients with respect to complex numbers: ∂f/∂a - i·∂f/∂b for z = a + ib, f'(z) where f is holomorphic."""

import numpy as np
import pytest

from dtrain import graph
from dtrain.errors import TraceError

rng = np.random.default_rng(3)
Z = rng.standard_normal(4) + 1j * rng.standard_normal(4)
W = rng.standard_normal((3, 4)) + 1j * rng.standard_normal((3, 4))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda z: np.sum(np.real(z * np.conj(z))), 2 * np.conj(Z)),
        (lambda z: np.sum(np.abs(z)), np.conj(Z) / np.abs(Z)),
        (lambda z: np.sum(np.imag(z)), np.full(4, -1j)),
        (lambda z: np.sum(np.angle(z)), -1j / Z),
        (lambda z: np.real(np.sum(z**3)), 3 * Z**2),
    ],
)
def test_the_gradient_of_a_real_function(f, expected, compiled):
    found = graph.grad(f, compile=compiled)(Z)
    assert found.dtype == np.complex128
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("f", [lambda z: np.sum(np.abs(W @ np.exp(z)) ** 2), lambda z: np.sum(np.abs(np.fft.fft(z)))])
def test_it_is_that_of_differences_along_both_axes(f):
    found = graph.grad(f)(Z)
    for k, unit in enumerate(np.eye(4) * 1e-6):
        along_a = (f(Z + unit) - f(Z - unit)) / 2e-6
        along_b = (f(Z + 1j * unit) - f(Z - 1j * unit)) / 2e-6
        np.testing.assert_allclose(found[k], along_a - 1j * along_b, rtol=1e-7)


def test_a_holomorphic_function_has_its_derivative():
    assert graph.grad(lambda z: np.sin(z) * z, holomorphic=True)(0.3 + 0.4j) == pytest.approx(
        np.cos(0.3 + 0.4j) * (0.3 + 0.4j) + np.sin(0.3 + 0.4j), rel=1e-14
    )
    found = graph.jacobian(lambda z: W @ np.exp(z), holomorphic=True)(Z)
    np.testing.assert_allclose(found, W * np.exp(Z), rtol=1e-13)


def test_pushing_and_pulling_are_the_products_with_the_jacobian():
    v, u = 1j * Z[::-1] + 0.5, W[:, 1]
    value, moved = graph.jvp(lambda z: W @ np.exp(z), (Z,), (v,))
    np.testing.assert_allclose(value, W @ np.exp(Z), rtol=1e-13)
    np.testing.assert_allclose(moved, (W * np.exp(Z)) @ v, rtol=1e-13)
    (pulled,) = graph.vjp(lambda z: W @ np.exp(z), Z)[1](u)
    np.testing.assert_allclose(pulled, u @ (W * np.exp(Z)), rtol=1e-13)


def test_single_precision_and_real_arguments_keep_their_dtype():
    single, real = graph.grad(lambda z, x: np.sum(np.abs(z * x)), (0, 1))(
        Z.astype(np.complex64), np.float32([1, 2, 3, 4])
    )
    assert (single.dtype, real.dtype) == (np.complex64, np.float32)


def test_the_own_check_takes_complex_arguments():
    graph.check_grads(lambda z, x: np.abs(W @ (z * x)) * np.angle(z[0]), [Z, np.arange(1.0, 5.0)], order=2)
    graph.check_grads(lambda z: np.exp(1j * z) / z, [Z])


def test_a_complex_result_needs_the_word_holomorphic():
    with pytest.raises(
        TraceError, match=r"complex; differentiate np\.real and np\.imag of it, or give holomorphic=True"
    ):
        graph.jacobian(lambda z: z * z)(Z)
    with pytest.raises(TraceError, match="holomorphic=True"):
        graph.grad(lambda z: np.sum(z * z))(Z)
