"""What a job trains on: named arrays with one leading sample axis, and the samples held out for evaluation.

Invariant: the arrays of a ``Source`` are numbers in native byte order, C-contiguous, of equal length and never empty.
They may be memory-mapped, then perhaps unaligned, and are read-only. Files are read and data generated elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtrain.errors import InputError

DataType = Literal["float32", "float64", "keep"]
"""What floating-point arrays become; integers and booleans always stay what they are."""

_CHECK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Source:
    """Training and evaluation data by name, conventionally ``x`` (n, …) and integer labels ``y`` (n,).

    ``eval`` is empty or has the same names, dtypes and shapes of a sample as ``train``. ``features`` is the number of
    values in a sample of ``x``, ``classes`` one more than the greatest label in ``y``, unless given; None where there
    is no such array. Raises ``InputError`` for arrays that do not fit together.
    """

    train: dict[str, NDArray[Any]]
    eval: dict[str, NDArray[Any]] = field(default_factory=dict)
    features: int | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise InputError("data.train: there are no arrays; give at least one, such as x")
        for part, arrays in (("train", self.train), ("eval", self.eval)):
            object.__setattr__(self, part, {name: _checked(part, name, array) for name, array in arrays.items()})
            _check_lengths(part, getattr(self, part))
        if self.eval:
            _check_alike(self.train, self.eval)
        if self.features is None and "x" in self.train:
            object.__setattr__(self, "features", math.prod(self.train["x"].shape[1:]))
        if self.classes is None:
            object.__setattr__(self, "classes", self._count_classes())

    @property
    def n(self) -> int:
        """The number of training samples."""
        return len(next(iter(self.train.values())))

    @property
    def n_eval(self) -> int:
        """The number of held-out samples; 0 if there are none."""
        return len(next(iter(self.eval.values()))) if self.eval else 0

    def count_tokens(self) -> int | None:
        """One more than the greatest integer in ``x`` and ``y``, the sequences of a model that predicts the next.

        None if they are not integers; ``InputError`` for a negative one.
        """
        greatest = -1
        for part, arrays in (("train", self.train), ("eval", self.eval)):
            for name in ("x", "y") if arrays else ():
                if name not in arrays or arrays[name].dtype.kind not in "iu":
                    return None
                if int(arrays[name].min()) < 0:
                    raise InputError(f"data.{part}: {name!r} has {int(arrays[name].min())}; number the tokens from 0")
                greatest = max(greatest, int(arrays[name].max()))
        return greatest + 1

    def _count_classes(self) -> int | None:
        greatest = -1
        for part, arrays in (("train", self.train), ("eval", self.eval)):
            labels = arrays.get("y")
            if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
                continue
            if int(labels.min()) < 0:
                sample = int(np.argmax(labels < 0))
                raise InputError(
                    f"data.{part}: 'y' of sample {sample} is the label {int(labels[sample])}; number the classes from 0"
                )
            greatest = max(greatest, int(labels.max()))
        return greatest + 1 if greatest >= 0 else None


def from_arrays(
    data: Mapping[str, ArrayLike], eval: Mapping[str, ArrayLike] | None = None, *, dtype: DataType = "keep"
) -> Source:
    """Make a ``Source`` of arrays in memory: checked, floats converted to ``dtype``, nan and infinity refused.

    An array that is already as it must be is used as it is, not copied.
    """
    parts: list[dict[str, NDArray[Any]]] = []
    for part, arrays in (("train", data), ("eval", eval or {})):
        if not isinstance(arrays, Mapping):
            raise InputError(
                f"data.{part}: expected a dict of arrays, got {type(arrays).__name__}; write {{'x': …, 'y': …}}"
            )
        parts.append({name: convert(_checked(part, name, array), dtype) for name, array in arrays.items()})
    source = Source(parts[0], parts[1])
    check_finite(source)
    return source


def convert(array: NDArray[Any], dtype: DataType) -> NDArray[Any]:
    """``array`` in ``dtype`` if it holds floats of another; otherwise itself."""
    if dtype == "keep" or array.dtype.kind != "f":
        return array
    return array.astype(dtype, copy=False)


def check_finite(source: Source) -> None:
    """Raise ``InputError`` naming the first value that is nan or infinite. Reads every float once, 1 MiB at a time."""
    for part, arrays in (("train", source.train), ("eval", source.eval)):
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                continue
            rows = max(1, _CHECK_BYTES * len(array) // max(1, array.nbytes))
            for start in range(0, len(array), rows):
                finite = np.isfinite(array[start : start + rows])
                if not finite.all():
                    at = np.unravel_index(int(np.argmin(finite)), finite.shape)
                    raise non_finite(part, name, array, start + int(at[0]), tuple(int(i) for i in at[1:]))


def non_finite(part: str, name: str, array: NDArray[Any], sample: int, place: tuple[int, ...]) -> InputError:
    """The error for a value of the data that is nan or infinite."""
    value = float(array[(sample, *place)])
    inside = f" at {list(place)}" if place else ""
    return InputError(
        f"data.{part}: {name!r} of sample {sample} is {value}{inside}; remove the sample or fill in the value"
    )


def _checked(part: str, name: object, array: ArrayLike) -> NDArray[Any]:
    """``array`` as a read-only C-contiguous view or copy in native byte order."""
    if not isinstance(name, str) or not name:
        raise InputError(f"data.{part}: expected names of arrays, got {name!r}; write {{'x': …, 'y': …}}")
    where = f"data.{part}: array {name!r}"
    try:
        result = np.asarray(array)
    except ValueError:
        raise InputError(f"{where} is ragged; make all samples the same shape") from None
    if result.dtype.kind not in "biuf" or result.dtype.itemsize > 8:
        remedy = "convert it to numbers" if result.dtype.kind != "f" else "convert it to float32 or float64"
        raise InputError(f"{where} has dtype {result.dtype}, expected integers, booleans or floats; {remedy}")
    if result.ndim == 0:
        raise InputError(f"{where} is a single value, expected a leading sample axis; give one entry per sample")
    if result.size == 0:
        raise InputError(f"{where} is empty, its shape is {result.shape}; give at least one sample")
    result = np.ascontiguousarray(result, dtype=result.dtype.newbyteorder("=")).view()
    result.flags.writeable = False
    return result


def _check_lengths(part: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"data.{part}: arrays differ in their number of samples ({listed}); give one entry per sample")


def _check_alike(train: Mapping[str, NDArray[Any]], evaluation: Mapping[str, NDArray[Any]]) -> None:
    if set(train) != set(evaluation):
        raise InputError(
            f"data.eval: has the arrays {', '.join(sorted(evaluation))}, data.train has {', '.join(sorted(train))}; "
            "give both the same arrays"
        )
    for name, array in train.items():
        other = evaluation[name]
        if array.dtype != other.dtype or array.shape[1:] != other.shape[1:]:
            raise InputError(
                f"data.eval: a sample of {name!r} is {other.dtype.name} {other.shape[1:]}, in data.train it is "
                f"{array.dtype.name} {array.shape[1:]}; make them alike"
            )
