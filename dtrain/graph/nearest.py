"""What to write instead of a function that is not covered, for the error message."""

from __future__ import annotations

from dtrain.graph.location import format_line, user_line

_BY_VALUES = "its shape depends on values: keep the shape with np.where(mask, x, 0), sort, or weigh"
_IN_PLACE = "use np.where, or x[...] = value on a copy"
_INTEGERS = "it is of integers, which have no gradient; use np.floor_divide and np.remainder of floats"
_OUTPUT = "write what the function returns, or `.value` to look at the array here"
_DATES = "dates have no gradient; use np.floor of floats"
_MEMORY = "traced arrays do not share memory; use np.array_equal to compare them"
_ROUNDING = "it has no useful derivative; use np.floor, np.rint or np.log2"


_CONTINUOUS = ("beta", "cauchy", "chi2", "expon", "gamma", "laplace", "logistic", "lognorm", "norm", "t", "uniform")
_IN_DTRAIN = (
    *[f"special.{f}" for f in ("logsumexp", "softmax", "log_softmax", "polygamma", "multigammaln")],
    *[f"signal.{f}" for f in ("convolve", "correlate", "fftconvolve")],
    *[f"linalg.{f}" for f in ("cholesky", "cho_factor", "cho_solve", "det", "inv", "block_diag", "expm", "sqrtm")],
    *[f"linalg.{f}" for f in ("solve", "solve_triangular", "solve_banded", "solve_sylvester")],
    *[f"stats.{d}.{f}" for d in _CONTINUOUS for f in ("pdf", "logpdf", "cdf", "sf", "logcdf", "logsf")],
    *[f"stats.{d}.{f}" for d in ("poisson", "binom", "bernoulli") for f in ("pmf", "logpmf", "cdf", "sf")],
    *[f"stats.{d}.{f}" for d in ("dirichlet", "multivariate_normal") for f in ("pdf", "logpdf")],
    "stats.multivariate_normal.entropy",
    "integrate.odeint",
)
"""What `dtrain.scipy` has; `graph` may not import it."""


def _of(remedy: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, remedy)


NEAREST: dict[str, str] = {
    "np.r_": "use np.concatenate or np.column_stack",
    "np.full": "use np.broadcast_to(x, shape)",
    "np.i0": "use scipy.special.i0",
    "np.piecewise": "use np.select",
    "np.lib.stride_tricks.sliding_window_view": "use x[np.arange(n)[:, None] + np.arange(width)]",
    "np.polydiv": "its shape depends on values: write the division out",
    "np.roots": "find them on plain arrays, then take a Newton step with np.polyval",
    "np.common_type": "use np.result_type",
    "np.can_cast": "use x.dtype with np.result_type",
    "np.min_scalar_type": "use x.dtype",
    "ndarray.sort": "use x = np.sort(x)",
    "ndarray.partition": "use x = np.partition(x, kth)",
    "ndarray.fill": "use np.full_like",
    "ndarray.flat": "use x.reshape(-1)",
    **{f"scipy.{name}": f"use dtrain.scipy.{name}" for name in _IN_DTRAIN},
    **_of(
        _BY_VALUES,
        *("np.histogram", "np.histogram2d", "np.histogramdd"),
        *("np.histogram_bin_edges", "np.unique", "np.unique_all", "np.unique_counts", "np.unique_inverse"),
        *("np.unique_values", "np.intersect1d", "np.union1d", "np.setdiff1d", "np.setxor1d", "np.trim_zeros"),
    ),
    **_of(
        _IN_PLACE,
        *("np.putmask", "np.place"),
    ),
    **_of(
        _INTEGERS,
        *("np.packbits", "np.unpackbits", "np.ravel_multi_index", "np.unravel_index"),
    ),
    **_of(
        _OUTPUT,
        *("np.array2string", "np.array_repr", "np.array_str", "np.save", "np.savetxt", "np.savez"),
        "np.savez_compressed",
    ),
    **_of(_DATES, "np.busday_count", "np.busday_offset", "np.is_busday", "np.datetime_as_string", "np.isnat"),
    **_of(_MEMORY, "np.may_share_memory", "np.shares_memory"),
    **_of(_ROUNDING, "np.spacing", "np.nextafter", "np.frexp"),
}


def not_covered(name: str) -> str:
    """Return the message for a function that is not covered: its name, the user's line, the remedy."""
    remedy = NEAREST.get(name)
    if remedy is None:
        remedy = "write it with covered functions (listed in dtrain.graph.numpy_functions)"
    return (
        f"{name} is not covered: it has no gradient rule here; used at {format_line(user_line())}; {remedy}, "
        "or call it on plain arrays outside the traced function"
    )
