"""The fingerprint covers names, dtypes, shapes, bits and position, and nothing of how the arrays lie in memory."""

from __future__ import annotations

import math

import numpy as np

from dtrain.train.fingerprint import CHAIN_START, extend_chain, fingerprint

POSITION = {"step": 12, "seed": 0, "epoch": 1}
EXPECTED = "455958c3602a84efc2885f4167c0dae721764e2f16ee678fc0ef5470c20a4a07"


def tensors() -> dict[str, dict[str, np.ndarray]]:
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "parameters": {"w": w, "b": np.zeros(3, np.float32), "scale": np.float32(2).reshape(())},
        "optimizer.velocity": {"w": w * 2, "b": np.ones(3, np.float32), "scale": np.zeros((), np.float32)},
    }


def test_it_is_a_sha256_that_never_changes() -> None:
    """A fingerprint stands in result files and checkpoints, so other versions must compute the same."""
    assert fingerprint(tensors(), POSITION) == EXPECTED
    assert len(EXPECTED) == 64


def test_order_memory_and_padding_do_not_count() -> None:
    expected = fingerprint(tensors(), POSITION)
    other = {group: {name: values[name] for name in reversed(values)} for group, values in reversed(tensors().items())}
    other["parameters"]["w"] = np.asfortranarray(other["parameters"]["w"])
    padded = np.full(64, np.nan, np.float32)
    padded[:3] = 0
    other["parameters"]["b"] = padded[:3]
    assert fingerprint(other, dict(reversed(POSITION.items()))) == expected


def changed(group: str, name: str, value: np.ndarray) -> str:
    values = tensors()
    values[group][name] = value
    return fingerprint(values, POSITION)


def test_everything_else_counts() -> None:
    w = tensors()["parameters"]["w"]
    one_bit = w.copy()
    one_bit.view(np.uint32)[1, 2] ^= 1
    renamed = tensors()
    renamed["parameters"]["v"] = renamed["parameters"].pop("w")
    swapped = {"parameters": tensors()["optimizer.velocity"], "optimizer.velocity": tensors()["parameters"]}
    without = tensors()
    del without["optimizer.velocity"]
    digests = [
        fingerprint(tensors(), POSITION),
        fingerprint(tensors(), {**POSITION, "step": 13}),
        fingerprint(tensors(), {**POSITION, "seed": 1}),
        fingerprint(renamed, POSITION),
        fingerprint(swapped, POSITION),
        fingerprint(without, POSITION),
        changed("parameters", "w", one_bit),
        changed("parameters", "w", w.reshape(3, 2)),
        changed("parameters", "w", w.T),
        changed("parameters", "w", w.view(np.int32)),
        changed("parameters", "w", w.astype(np.float64)),
        changed("parameters", "w", w.astype(">f4")),
        changed("parameters", "b", -np.zeros(3, np.float32)),
        changed("parameters", "scale", np.full(1, 2, np.float32)),
        changed("optimizer.velocity", "b", np.full(3, 1.0000001, np.float32)),
    ]
    assert len(set(digests)) == len(digests)


def test_values_may_not_move_from_one_tensor_to_the_next() -> None:
    first = {"parameters": {"a": np.array([1, 2], np.float32), "b": np.array([3], np.float32)}}
    second = {"parameters": {"a": np.array([1], np.float32), "b": np.array([2, 3], np.float32)}}
    assert fingerprint(first, POSITION) != fingerprint(second, POSITION)


def test_the_chain_depends_on_every_figure_and_on_their_order() -> None:
    links = [
        extend_chain(CHAIN_START, 0, 1.0, 2.0),
        extend_chain(CHAIN_START, 1, 1.0, 2.0),
        extend_chain(CHAIN_START, 0, math.nextafter(1.0, 2.0), 2.0),
        extend_chain(CHAIN_START, 0, 1.0, math.nextafter(2.0, 3.0)),
        extend_chain(CHAIN_START, 0, 2.0, 1.0),
        extend_chain(extend_chain(CHAIN_START, 0, 1.0, 2.0), 1, 1.0, 2.0),
        extend_chain(extend_chain(CHAIN_START, 1, 1.0, 2.0), 0, 1.0, 2.0),
        CHAIN_START,
    ]
    assert len(set(links)) == len(links)
    assert all(len(bytes.fromhex(link)) == 32 for link in links)
    assert extend_chain(CHAIN_START, 3, math.nan, math.nan) == extend_chain(CHAIN_START, 3, math.nan, math.nan)
