"""Rows of the rest of the elementwise functions, of choices, and of the parts of complex numbers."""

from __future__ import annotations

import numpy as np
import torch

from tests.ops_samples import ABOVE, CUBE, INSIDE, MASK, POSITIVE, V, X, Y, real, row, tensor

for _name, _inputs in {
    "fmax": (X, Y), "fmin": (X, Y), "fmod": (X, ABOVE), "logaddexp2": (X, Y),
    "copysign": (X, real("cs", 3, 4)), "heaviside": (X, Y),
}.items():  # fmt: skip
    row(_name, getattr(np, _name), getattr(torch, _name) if _name != "heaviside" else None, *_inputs)
    row(f"{_name} with a row", getattr(np, _name), None, _inputs[0], _inputs[1][:1])
row("fmod of negatives", lambda x: np.fmod(x, -0.7) * x, lambda x: torch.fmod(x, -0.7) * x, X)
row("heaviside at 0", np.heaviside, None, np.array([0.0, 1.0, -1.0]), np.array([0.5, 0.5, 0.5]), orders=0)
for _name in ("deg2rad", "rad2deg"):
    row(_name, getattr(np, _name), getattr(torch, _name), 50 * X)
row("radians degrees", lambda x: np.radians(x) * np.degrees(x), lambda x: torch.deg2rad(x) * torch.rad2deg(x), X)
row("fmax with nan", lambda x: np.fmax(x, np.array([np.nan, 0.1, -3.0, 9.0])), None, V)
row(
    "divmod",
    lambda x, y: divmod(x, y)[1] + np.divmod(x, 0.7)[0] * x,
    lambda x, y: x % y + x * torch.floor(x / 0.7),
    X,
    ABOVE,
)
row("reversed divmod", lambda x: divmod(2.0, x)[1], lambda x: 2.0 - x * torch.floor(2.0 / x), ABOVE)
row("modf", lambda x: np.modf(x)[0] * np.modf(x)[1], lambda x: torch.frac(x) * torch.trunc(x), X)
row("round", lambda x: x * np.round(x, 1), lambda x: x * torch.round(x, decimals=1).detach(), X)
row("around", lambda x: x * np.around(10 * x, -1), lambda x: x * torch.round(10 * x, decimals=-1).detach(), 3 * X)
row("round()", lambda x: x.round(1) * x.round() * x, None, X)
row("fix", lambda x: np.fix(x) * x, lambda x: torch.trunc(x) * x, X)
row("sinc", np.sinc, torch.sinc, X)
row("sinc near 0", np.sinc, torch.sinc, np.array([0.0, -1e-4, 0.01, 0.1, -0.17]))
row("nan_to_num",
    lambda x: np.nan_to_num(x + np.array([np.inf, 1.0, -np.inf, np.nan]), nan=2.0, posinf=3.0, neginf=-1.0),
    lambda x: torch.where(tensor([False, True, False, False]), x + 1, tensor([3.0, 0.0, -1.0, 2.0], dtype=x.dtype)),
    X)  # fmt: skip
row("nan_to_num of finite", lambda x: np.nan_to_num(x), lambda x: x * 1, X)
row("select", lambda x, y: np.select([x < -0.6, x < 0.5], [x * x, y], 3 * x),
    lambda x, y: torch.where(x < -0.6, x * x, torch.where(x < 0.5, y, 3 * x)), X, Y)  # fmt: skip
row("choose", lambda x, y: np.choose((x > 0).astype(int), [x * y, np.sin(y)]),
    lambda x, y: torch.where(x > 0, torch.sin(y), x * y), X, Y)  # fmt: skip
row("choose wrapped", lambda x, v: np.choose(np.arange(12).reshape(3, 4), [x, v, 2 * x], mode="wrap"), None, X, V)
row("choose clipped", lambda x, v: np.choose(np.arange(12).reshape(3, 4) - 2, [x, v, 2 * x], mode="clip"), None, X, V)
row("allclose", lambda x: np.where(np.allclose(x, x), x, 0), lambda x: x * 1, X)
row("multiply.outer", lambda x, v: np.multiply.outer(x, v), lambda x, v: x[..., None] * v, X, V)

row("length of a complex number", lambda x, y: np.abs(x + 1j * y), lambda x, y: torch.abs(torch.complex(x, y)), X, Y)
row("parts", lambda x, y: np.real((x + 1j * y) ** 2) + ((x + 1j * y) * 2j).imag,
    lambda x, y: torch.complex(x, y).square().real + 2 * x, X, Y)  # fmt: skip
row("complex functions", lambda x, y: np.exp(np.sin(x + 1j * y) / (x - 1j * y)).real * np.sqrt(y + 1j * x).imag,
    lambda x, y: torch.exp(torch.sin(torch.complex(x, y)) / torch.complex(x, -y)).real
    * torch.sqrt(torch.complex(y, x)).imag, INSIDE, POSITIVE)  # fmt: skip
row("conjugate of complex", lambda x, y: np.imag(np.conjugate(x * 1j + y) * (x + 2j)) + (x + 1j).conj().imag,
    lambda x, y: torch.imag((-x * 1j + y) * (x + 2j)) - 1, X, Y)  # fmt: skip
row("angle", lambda x, y: np.angle(x + 1j * y) + np.angle(y + 1j * x, deg=True),
    lambda x, y: torch.atan2(y, x) + torch.rad2deg(torch.atan2(x, y)), X, POSITIVE)  # fmt: skip
row("complex product", lambda x, y: np.abs((x[0] + 2j * y[0]) @ (y.T + 1j * x.T)),
    lambda x, y: torch.abs(torch.complex(x[0], 2 * y[0]) @ torch.complex(y.T, x.T)), X, Y)  # fmt: skip
row("parts of real", lambda x: np.real(x) + np.imag(x) + x.real.conjugate(), lambda x: 2 * x, CUBE)
row("iscomplex isreal", lambda x, y: np.where(np.iscomplex(x + 1j * np.where(MASK, y, 0)) & np.isreal(y), x, 3 * x),
    lambda x, y: torch.where(tensor(MASK), x, 3 * x), X, Y)  # fmt: skip
row("isposinf isneginf isin", lambda x: np.where(np.isposinf(np.where(MASK, np.inf, x)), x, 2 * x)
    + np.where(np.isneginf(np.where(MASK, -np.inf, x)), x, 0)
    + x * np.isin(x > 1, [True]) - x * np.isin(x > 0, np.array([True]), invert=True),
    lambda x: 2 * x + x * (x > 1) - x * (x <= 0), X)  # fmt: skip
