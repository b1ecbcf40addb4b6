"""What every rule must keep: bits that do not depend on the cut, no allocation, dtype, errors."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from dtrain.errors import InputError
from dtrain.optim import RULES, Rule, make_rule

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in RULES),
    *((name, {"weight_decay": 0.01}) for name in RULES),
    ("momentum", {"lr_in_velocity": True}),
    ("nesterov", {"lr_in_velocity": True, "weight_decay": 0.01}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("rmsprop", {"centered": True, "momentum": 0.9, "eps_inside_root": True, "lr_in_velocity": True}),
]
IDS = [f"{name}-{options}" for name, options in VARIANTS]
SIZE = 3 * 16384 + 4099


def run(rule: Rule, cuts: list[int], dtype: type = np.float32) -> list[np.ndarray]:
    """Parameter and state after four steps of updates in the blocks that end at ``cuts``."""
    random = np.random.default_rng(11)
    parameter = random.standard_normal(SIZE).astype(dtype)
    # Zeros, denormals and large values too: the tail loop of a kernel must not treat them differently.
    gradients = (random.standard_normal((4, SIZE)) * 10.0 ** random.integers(-42, 8, SIZE)).astype(dtype)
    gradients[:, ::17] = 0
    state = tuple(np.full(SIZE, rule.state_init(name), dtype) for name in rule.state_names)
    scratch = np.empty(SIZE, dtype), np.empty(SIZE, dtype)
    for step, gradient in enumerate(gradients):
        coefficients = rule.coefficients(step, 0.05)
        begin = 0
        for end in cuts:
            size, cut = end - begin, slice(begin, end)
            rule.update(
                parameter[cut],
                gradient[cut],
                tuple(buffer[cut] for buffer in state),
                coefficients,
                (scratch[0][:size], scratch[1][:size]),
            )
            begin = end
    return [parameter, *state]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_bits_do_not_depend_on_the_cut(name: str, options: dict[str, Any]) -> None:
    rule = make_rule(name, **options)
    with np.errstate(all="ignore"):
        whole = run(rule, [SIZE])
        blocks = run(rule, [*range(16384, SIZE, 16384), SIZE])
        odd = run(rule, [1, 2, 5, 16, 33, 1000, 1001, 16385, 30011, 49999, SIZE - 1, SIZE])
    for first, second, third in zip(whole, blocks, odd, strict=True):
        assert first.tobytes() == second.tobytes() == third.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_update_allocates_nothing(name: str, options: dict[str, Any], dtype: type) -> None:
    rule = make_rule(name, **options)
    block = np.ones(16384, dtype)
    gradient, scratch = block * 0.5, (block.copy(), block.copy())
    state = tuple(np.full_like(block, rule.state_init(state_name)) for state_name in rule.state_names)
    coefficients = rule.coefficients(3, 0.1)
    rule.update(block, gradient, state, coefficients, scratch)
    tracemalloc.start()
    try:
        rule.update(block, gradient, state, coefficients, scratch)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4096  # a few scalars; one block is 64 KiB or 128 KiB


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_coefficients_are_few_plain_floats(name: str, options: dict[str, Any]) -> None:
    rule = make_rule(name, **options)
    for step in (0, 1, 10**7):
        coefficients = rule.coefficients(step, 0.1)
        assert 1 <= len(coefficients) <= 8
        assert all(type(value) is float and np.isfinite(value) for value in coefficients)


def test_a_rule_knows_its_name() -> None:
    assert [make_rule(name).name for name in RULES] == list(RULES)


def test_rules_are_values() -> None:
    assert make_rule("momentum") == make_rule("sgd", momentum=0.9)
    assert hash(make_rule("adam")) == hash(make_rule("adam", beta1=0.9))


def test_a_number_written_as_text_is_taken() -> None:
    assert make_rule("adam", eps="1e-6") == make_rule("adam", eps=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adm", {}, "optimizer.name: there is no optimizer 'adm'; did you mean 'adam'?"),
        ("adam", {"beta": 0.9}, "optimizer.beta: optimizer 'adam' has no option 'beta'; did you mean 'beta"),
        ("adam", {"beta1": 1.0}, "optimizer.beta1: expected a number at least 0 and below 1, got 1.0"),
        ("sgd", {"weight_decay": -1}, "optimizer.weight_decay: expected a number at least 0, got -1.0"),
        ("sgd", {"momentum": "fast"}, "optimizer.momentum: expected a number, got 'fast'"),
        ("rmsprop", {"centered": 1}, "optimizer.centered: expected true or false, got 1"),
        ("sgd", {"nesterov": True}, "optimizer.nesterov: needs a momentum above 0"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rule(name, **options)
