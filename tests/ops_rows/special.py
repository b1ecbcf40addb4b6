"""Rows of scipy.special, and of the helpers beside it."""

from __future__ import annotations

import torch
from scipy import special

import dtrain.graph.ops.special
from dtrain import graph
from tests.ops_samples import ABOVE, INSIDE, POSITIVE, X, real, row

_UNIT = real("unit", 3, 4, low=0.05, high=0.95)
_s = torch.special


def _sign(x):
    """The sign of the gamma function above -1."""
    return torch.where(x > 0, 1.0, -1.0)


for _name, _input, _theirs in (
    ("erf", X, _s.erf), ("erfc", X, _s.erfc), ("erfcx", X, _s.erfcx), ("erfinv", INSIDE, _s.erfinv),
    ("erfcinv", _UNIT, lambda x: _s.erfinv(1 - x)), ("expit", X, _s.expit),
    ("log_expit", X, torch.nn.functional.logsigmoid),
    ("logit", _UNIT, _s.logit), ("gammaln", POSITIVE, _s.gammaln),
    ("gamma", POSITIVE, lambda x: torch.exp(_s.gammaln(x))),
    ("rgamma", POSITIVE, lambda x: torch.exp(-_s.gammaln(x))), ("psi", POSITIVE, None),
    ("entr", POSITIVE, _s.entr),
    ("ndtr", X, _s.ndtr), ("log_ndtr", X, _s.log_ndtr), ("ndtri", _UNIT, _s.ndtri), ("i0", X, _s.i0), ("i1", X, _s.i1),
    ("j0", X, None), ("j1", X, None), ("sindg", 50 * X, lambda x: torch.sin(torch.deg2rad(x))),
    ("cosdg", 50 * X, lambda x: torch.cos(torch.deg2rad(x))),
    ("y0", POSITIVE, None), ("y1", POSITIVE, None), ("k0", POSITIVE, None), ("k1", POSITIVE, None), ("i0e", X, _s.i0e),
    ("i1e", X, _s.i1e), ("exp1", POSITIVE, None), ("expi", POSITIVE, None), ("dawsn", X, None),
):  # fmt: skip
    row(_name, getattr(special, _name), _theirs, _input)
for _name, _inputs, _theirs in (
    ("xlogy", (X, POSITIVE), _s.xlogy), ("xlog1py", (X, POSITIVE), _s.xlog1py),
    ("rel_entr", (ABOVE, POSITIVE), lambda x, y: x * torch.log(x / y)),
    ("kl_div", (ABOVE, POSITIVE), lambda x, y: x * torch.log(x / y) - x + y),
    ("betaln", (ABOVE, POSITIVE), lambda x, y: torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)),
    ("beta", (ABOVE, POSITIVE), lambda x, y: torch.exp(torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y))),
):  # fmt: skip
    row(_name, getattr(special, _name), _theirs, *_inputs)
for _name, _order in (("jv", 1.5), ("yv", 1.5), ("yn", 2), ("iv", 1.5), ("ive", 2.0), ("kv", 1.5), ("gammainc", 2.5),
                      ("gammaincc", 1), ("stdtr", 3.5)):  # fmt: skip
    _function = getattr(special, _name)
    row(_name, lambda x, f=_function, v=_order: f(x.dtype.type(v), x), None, POSITIVE)
row("betainc", lambda x: special.betainc(1.5, 2.5, x), None, _UNIT)
row("gammasgn", lambda x: x * special.gammasgn(x - 0.5), lambda x: x * _sign(x - 0.5), POSITIVE)
row("zeta", lambda x: special.zeta(2.5, x), lambda x: _s.zeta(torch.tensor(2.5, dtype=x.dtype), x), POSITIVE, orders=0)
row("normal_cdf", graph.normal_cdf, _s.ndtr, X)
row("softmax", lambda x: graph.softmax(x, axis=1), lambda x: torch.softmax(x, 1), X)
row(
    "log_softmax",
    lambda x: graph.log_softmax(5 * x),
    lambda x: torch.log_softmax(5 * x.ravel(), 0).reshape(3, 4),
    X,
)

__all__ = ["dtrain"]
