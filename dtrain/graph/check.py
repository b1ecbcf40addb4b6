"""Gradient check: the derivative along a random direction, against differences of the plain function.

One random direction checks a whole Jacobian. The plain function is evaluated by NumPy in float64, by central
differences and, where it is analytic, by the complex step, which has no cancellation. Where a kink (relu, max, abs,
…) lies between the two points, the difference means nothing; the report names the kink.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dtrain.errors import DtrainError, InputError
from dtrain.graph.api import trace, vjp
from dtrain.graph.regions import Structural
from dtrain.graph.transformations import jvp
from dtrain.graph.tree import flatten, map_leaves, named_leaves, unflatten

KINKED = {
    *("relu", "maximum", "minimum", "fmax", "fmin", "absolute", "copysign", "sign", "max", "min", "clamp"),
    *("floor", "ceil", "rint", "trunc", "floor_divide", "argsort", "argpartition", "argmax", "argmin"),
    "searchsorted",
}
"""Primitives with a kink or jump, beside the comparisons that steer np.where."""

BANDS = (
    (1e-7, "right"),
    (1e-4, "right where there are kinks, doubtful where there are none"),
    (1e-2, "probably wrong"),
    (np.inf, "wrong"),
)
"""How CS231n reads a relative error of a gradient check in float64."""


class GradientCheckError(DtrainError, AssertionError):
    """The gradient differs from the differences of the function; the message gives the relative error."""


@dataclass(frozen=True)
class ArgumentCheck:
    """The outcome for one argument leaf: derivative along a random direction, by the rules and by differences."""

    name: str
    analytic: float
    numeric: float
    method: str
    relative_error: float
    kinks: tuple[str, ...] = ()

    @property
    def band(self) -> str:
        """The reading of the relative error, in words."""
        return next(words for limit, words in BANDS if self.relative_error <= limit)

    def __str__(self) -> str:
        kinks = f"; kinks crossed: {', '.join(self.kinks)}" if self.kinks else ""
        return (
            f"{self.name}: gradient {self.analytic:.12g}, {self.method} {self.numeric:.12g}, "
            f"relative error {self.relative_error:.2e} ({self.band}){kinks}"
        )


@dataclass(frozen=True)
class CheckReport:
    """The outcome for all arguments."""

    arguments: tuple[ArgumentCheck, ...] = field(default_factory=tuple)

    @property
    def relative_error(self) -> float:
        """The largest relative error of an argument whose differences cross no kink."""
        return max((a.relative_error for a in self.arguments if not a.kinks), default=0.0)

    def __str__(self) -> str:
        return "\n".join(map(str, self.arguments))


def _to_double(tree: Any) -> Any:
    def convert(leaf: Any) -> Any:
        kind = leaf.dtype.kind if hasattr(leaf, "dtype") else np.asarray(leaf).dtype.kind
        if kind in "fc" and (hasattr(leaf, "dtype") or isinstance(leaf, float | complex)):
            return np.asarray(leaf, np.float64 if kind == "f" else np.complex128)
        return leaf

    return map_leaves(convert, tree)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fc"


def _normal(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Return normal numbers of the shape of an array, complex where it is."""
    found = rng.standard_normal(like.shape)
    return found + 1j * rng.standard_normal(like.shape) if like.dtype.kind == "c" else np.asarray(found)


def _project(outputs: Any, weights: list[np.ndarray]) -> Any:
    """Σ weight·output over the floating outputs."""
    total: Any = 0.0
    found = iter(weights)
    for leaf in flatten(outputs)[0]:
        if np.asarray(leaf).dtype.kind in "fc":
            total = total + np.sum(next(found) * leaf)
    return total


def _decisions(f: Callable[..., Any], args: Sequence[Any]) -> list[tuple[str, np.ndarray]]:
    """Trace f and return on which side of its kink each element of each kinked node lies."""
    result = []
    for node in trace(f, *args).nodes:
        if node.op is None or isinstance(node.op, Structural):
            continue
        values = [np.asarray(i.value) for i in node.inputs]
        where = f"{node.op.name} at {node.location}"
        if values and values[0].dtype.kind == "c":
            continue
        if node.op.name in ("relu", "absolute", "sign", "copysign"):
            result.append((where, np.sign(values[0])))
        elif node.op.name in ("maximum", "minimum", "fmax", "fmin"):
            result.append((where, np.sign(values[0] - values[1])))
        elif node.op.name in ("max", "min"):
            axis = node.static["axis"]
            top = node.value if node.static["keepdims"] else np.expand_dims(node.value, axis)
            result.append((where, values[0] == top))
        elif node.op.name in KINKED or node.dtype.kind == "b":
            inside = node.value if node.op.name != "clamp" else node.value == values[0]
            result.append((where, np.asarray(inside)))
    return result


def _kinks(f: Callable[..., Any], low: Sequence[Any], high: Sequence[Any]) -> tuple[str, ...]:
    try:
        pairs = list(zip(_decisions(f, low), _decisions(f, high), strict=True))
    except ValueError:
        return ("the two traces differ",)
    return tuple(dict.fromkeys(where for (where, a), (_, b) in pairs if not np.array_equal(a, b)))


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    modes: Sequence[str] = ("rev",),
    order: int = 1,
    tolerance: float = 1e-6,
    step: float = 1e-6,
    seed: int = 0,
    entries: int = 0,
) -> CheckReport:
    """Check the gradient rules of f at `args` and return the report of relative errors, one per float leaf and mode.

    f takes and returns trees of arrays; its outputs are projected on random weights. Floats are cast to float64,
    complex numbers to complex128.
    `step` is relative to the size of the argument. `modes` are "rev" for gradients (vjp) and "fwd" for derivatives
    along a direction (jvp). With `order` 2, the gradient itself is then checked as a function.
    Beside the random direction, so many `entries` of each leaf, drawn at random, are checked alone (gradients only).
    Raises GradientCheckError if a relative error exceeds `tolerance` and no kink explains it.
    """
    if not modes or not set(modes) <= {"fwd", "rev"}:
        raise InputError(f"check_grads: modes: expected some of fwd and rev, got {', '.join(modes) or 'none'}")
    args = [_to_double(a) for a in args]
    rng = np.random.default_rng(seed)
    outputs, pullback = vjp(f, *args)
    leaves, structure = flatten(outputs)
    weights = [_normal(rng, np.asarray(o)) for o in leaves if np.asarray(o).dtype.kind in "fc"]
    drawn = iter(weights)
    seeds = [next(drawn) if np.asarray(o).dtype.kind in "fc" else None for o in leaves]
    gradients = pullback(unflatten(structure, seeds))
    checks = []
    for position, arg in enumerate(args):
        arg_leaves, arg_structure = flatten(arg)
        names = [name for name, _ in named_leaves(arg)]
        gradient_leaves = [None] * len(arg_leaves) if gradients[position] is None else flatten(gradients[position])[0]
        for k, (name, leaf, gradient) in enumerate(zip(names, arg_leaves, gradient_leaves, strict=True)):
            if not _is_float(leaf) or leaf.size == 0:
                continue

            def moved(
                change: Any,
                position: int = position,
                k: int = k,
                leaf: Any = leaf,
                leaves: Any = arg_leaves,
                structure: Any = arg_structure,
            ) -> list[Any]:
                new = list(leaves)
                new[k] = leaf + change
                return [*args[:position], unflatten(structure, new), *args[position + 1 :]]

            direction = _normal(rng, leaf)
            label = f"argument {position}" + (f" ({name})" if name else "")
            size = step * max(1.0, np.abs(leaf).max())
            if "rev" in modes:
                analytic = float(np.sum(gradient * direction).real)
                checks.append(_check_leaf(f, moved, direction, analytic, gradient, weights, size, label))
                for at in rng.choice(leaf.size, min(entries, leaf.size), replace=False).tolist():
                    one = np.zeros_like(leaf)
                    one.flat[at] = 1.0
                    place = f"{label}{[int(i) for i in np.unravel_index(at, leaf.shape)]}"
                    analytic = float(np.asarray(gradient).flat[at].real)
                    checks.append(_check_leaf(f, moved, one, analytic, gradient, weights, size, place))
            if "fwd" in modes:
                tangents = [map_leaves(lambda _: None, a) for a in args]
                tangents[position] = unflatten(
                    arg_structure, [direction if i == k else None for i in range(len(names))]
                )
                _, along = jvp(f, args, tangents, compile=False)
                analytic = float(np.real(_project(along, weights)))
                checks.append(_check_leaf(f, moved, direction, analytic, gradient, weights, size, f"{label}, forward"))
    report = CheckReport(tuple(checks))
    if report.relative_error > tolerance:
        worst = max((c for c in checks if not c.kinks), key=lambda c: c.relative_error)
        raise GradientCheckError(f"gradient check of {getattr(f, '__name__', f)}: {worst}; tolerance {tolerance:.0e}")
    if order > 1:
        floats = [i for i, a in enumerate(args) if any(_is_float(leaf) for leaf in flatten(a)[0])]

        def gradient_of(*inner: Any) -> Any:
            _, inner_pullback = vjp(f, *inner)
            found = inner_pullback(unflatten(structure, seeds))
            return [found[i] for i in floats]

        gradient_of.__name__ = f"the gradient of {getattr(f, '__name__', 'f')}"
        second = check_grads(
            gradient_of, args, modes=modes, order=order - 1, tolerance=tolerance, step=step, seed=seed + 1
        )
        report = CheckReport((*report.arguments, *second.arguments))
    return report


def _check_leaf(
    f: Callable[..., Any],
    moved: Callable[[Any], list[Any]],
    direction: np.ndarray,
    analytic: float,
    gradient: Any,
    weights: list[np.ndarray],
    step: float,
    label: str,
) -> ArgumentCheck:
    high, low = moved(step * direction), moved(-step * direction)
    above, below = (float(np.real(_project(f(*at), weights))) for at in (high, low))
    numeric = (above - below) / (2 * step)
    noise = 4 * np.finfo(float).eps * max(abs(above), abs(below)) / step  # what rounding alone can make of a zero
    # The gradient's own size bounds what cancels in the projection.
    scale = max(abs(analytic), abs(numeric), 1e-3 * float(np.linalg.norm(gradient)), 1e-10)
    difference = abs(analytic - numeric)
    error, method = (difference if difference > noise else 0.0) / scale, "central difference"
    if any(a.dtype.kind == "c" for a in (direction, *weights)):
        return ArgumentCheck(label, analytic, numeric, method, error, _kinks(f, low, high) if error > 1e-9 else ())
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            tiny = 1e-30
            by_complex = complex(_project(f(*moved(1j * tiny * direction)), weights)).imag / tiny
    except Exception:  # not every function takes complex arrays: the central difference stands
        by_complex = np.nan
    # A function that is not analytic (abs, comparisons) gives a wrong complex step: trust it only where it confirms
    # the other.
    if abs(by_complex - numeric) <= 1e-4 * scale:
        numeric, error, method = by_complex, abs(analytic - by_complex) / scale, "complex step"
    kinks = _kinks(f, low, high) if error > 1e-9 else ()
    return ArgumentCheck(label, analytic, numeric, method, error, kinks)
