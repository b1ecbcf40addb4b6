"""The numerics class names what decides the bits, is the same every time, and shows a difference where there is one."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import threadpoolctl

import dtrain
from dtrain.comm.threads import one_blas_thread
from dtrain.train import numerics
from dtrain.train.numerics import canary, describe, numerics_class

FIELDS = {"dtrain", "numpy", "blas", "blas_kernels", "blas_threads", "simd", "machine", "denormals", "canary"}


def test_every_field_has_a_value() -> None:
    found = numerics_class()
    assert set(found) == FIELDS
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["dtrain"] == dtrain.__version__
    assert found["numpy"] == np.__version__
    assert platform.machine() in found["machine"]
    assert found["denormals"] == "kept"


def test_the_same_process_is_of_one_class() -> None:
    with one_blas_thread():
        first = numerics_class()
        np.random.default_rng(0).random(1000)
        assert numerics_class() == first


def test_the_number_of_blas_threads_is_a_field() -> None:
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert numerics_class()["blas_threads"] == "1"
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert numerics_class()["blas_threads"] == "2"


def test_the_canary_is_a_digest_of_bits() -> None:
    assert len(bytes.fromhex(canary())) == 8
    assert canary() == canary()


@pytest.mark.parametrize("function", ["exp", "tanh", "log", "sqrt", "dot", "sin"])
def test_the_canary_shows_one_bit_in(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, original = canary(), getattr(np, function)

    def another_library(*arguments: object) -> object:
        return np.nextafter(original(*arguments), np.inf)

    monkeypatch.setattr(np, function, another_library)
    assert canary() != expected


def test_flushed_denormals_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flushed:
        def __mul__(self, other: object) -> np.ndarray:
            return np.zeros(1, np.float32)

    monkeypatch.setattr(numerics.np, "array", lambda *a, **k: Flushed())
    monkeypatch.setattr(numerics, "canary", lambda: "0" * 16)
    assert numerics_class()["denormals"] == "flushed"


def test_one_line_for_the_terminal() -> None:
    found = numerics_class()
    line = describe(found)
    assert "\n" not in line
    for field in ("numpy", "blas", "blas_kernels", "canary"):
        assert found[field] in line
