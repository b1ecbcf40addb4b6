# mypy: allow-untyped-defs
# Gradient rules are formulas: their arguments are all Tensors, and types would hide the mathematics.
"""Randomness inside a model: raw counter-based Philox words that depend on (seed, step, shard, place in the graph)
and nothing else.

The invariant: the key (seed, step, shard) is an input of the graph, never baked into it, so one plan serves every
step and shard. `training` is static: a trace for evaluation is another graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dtrain.errors import TraceError
from dtrain.graph.primitive import Call, Shape, primitive, record
from dtrain.graph.tensor import Graph, Tensor, active_graph, format_line, user_line

_STATE = threading.local()
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Report:
    """What a model said of its shard: the ``value`` that belongs to a leaf of the parameters, and the user's line."""

    leaf: Any
    value: Any
    line: str


class StepContext:
    """What a model may ask about the step that it is part of, and tell about its shard.

    ``reports`` is None unless somebody wants to have them, ``samples`` is the number of samples of the whole step, if
    that is known.
    """

    def __init__(self, seed: int, step: int, shard: int, training: bool) -> None:
        self.seed = seed
        self.step = step
        self.shard = shard
        self.training = training
        self.places = 0
        self.reports: list[Report] | None = None
        self.samples: int | None = None

    @property
    def key(self) -> np.ndarray:
        """uint64[4] = (seed, step, shard, 0), the value of a graph's key input."""
        return step_key(self.seed, self.step, self.shard)


def step_key(seed: int, step: int, shard: int) -> np.ndarray:
    """Return the key uint64[4] = (seed, step, shard, 0)."""
    return np.array([seed & _MASK, step & _MASK, shard & _MASK, 0], np.uint64)


def current_context() -> StepContext | None:
    """Return the context that this thread is in, or None."""
    return getattr(_STATE, "context", None)


@contextmanager
def step_context(seed: int = 0, step: int = 0, shard: int = 0, training: bool = True) -> Iterator[StepContext]:
    """Say which step and shard of which job the code inside belongs to, for everything random and for `training`."""
    outer = current_context()
    context = StepContext(seed, step, shard, training)
    _STATE.context = context
    try:
        yield context
    finally:
        _STATE.context = outer


def require_context(what: str) -> StepContext:
    """Return the current context, or raise a TraceError that says how to make one."""
    context = current_context()
    if context is None:
        raise TraceError(
            f"{what} at {format_line(user_line())} needs to know the step it belongs to; wrap the call in "
            "`with dtrain.graph.step_context(seed, step, shard, training=True):` (training=False for evaluation)"
        )
    return context


def is_training() -> bool:
    """Whether the current context is one of training; without a context, False."""
    context = current_context()
    return context is not None and context.training


def philox_words(key: np.ndarray, place: int, count: int) -> np.ndarray:
    """Return `count` raw words of Philox(key=(seed, place), counter=(0, loop, step, shard)).

    `loop` is 0, and within a loop tells its steps apart."""
    seed, step, shard, loop = int(key[0]), int(key[1]), int(key[2]), int(key[3])
    generator = np.random.Philox(
        key=np.array([seed, place], np.uint64), counter=np.array([0, loop, step, shard], np.uint64)
    )
    return generator.random_raw(count)


def _words_shape(key: Any, *, place: int, count: int) -> tuple[Shape, np.dtype[Any]]:
    return (count,), np.dtype(np.uint64)


def _words_run(out: np.ndarray, key: np.ndarray, place: int) -> None:
    out[...] = philox_words(key, place, out.size)


def _words_bind(out: np.ndarray, key: np.ndarray, *, place: int, count: int) -> Call:
    return partial(_words_run, out, key, place)


@primitive(shape=_words_shape, bind=_words_bind, is_random=True, is_differentiable=False)
def random_words_(g, out, key, *, place, count):
    """Raw Philox words of a place in the graph."""


def _keep_shape(words: Any, *, shape: Shape, threshold: int) -> tuple[Shape, np.dtype[Any]]:
    return shape, np.dtype(np.bool_)


def _keep_bind(out: np.ndarray, words: np.ndarray, *, shape: Shape, threshold: int) -> Call:
    parts = words.view("<u2")[: out.size].reshape(shape)
    if threshold > 0xFFFF:
        return partial(out.fill, True)
    return partial(np.less, parts, np.uint16(threshold), out)


@primitive(shape=_keep_shape, bind=_keep_bind, is_differentiable=False)
def keep_(g, out, words, *, shape, threshold):
    """True where the element's 16 bits of the words are below the threshold."""


def key_of(graph: Graph) -> Tensor:
    """Return the graph's input uint64[4] = (seed, step, shard, 0), made when it is first asked for."""
    if graph.key is None:
        graph.key = graph.input(require_context("a random number").key, "random key")
    return graph.key


def random_words(count: int) -> Any:
    """Return `count` raw uint64 words that depend on (seed, step, shard) and on how many were asked before in this
    trace."""
    context = require_context("a random number")
    graph = active_graph()
    if graph is None:
        place = context.places
        context.places += 1
        return philox_words(context.key, place, count)
    place = graph.random_places
    graph.random_places += 1
    return record(random_words_, (key_of(graph),), {"place": place, "count": count})


def keep_mask(shape: Any, rate: float) -> Any:
    """Return a boolean mask of `shape`, False with probability `rate` (rounded to a multiple of 1/65536).

    Each element takes 16 bits of raw Philox words, four to a word, in C order. Raises TraceError outside of a step
    context.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate: expected 0 <= rate < 1, got {rate}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = 1
    for n in shape:
        size *= n
    words = random_words(-(-size // 4))
    threshold = 65536 - round(rate * 65536)
    if isinstance(words, Tensor):
        return record(keep_, (words,), {"shape": shape, "threshold": threshold})
    return words.view("<u2")[:size].reshape(shape) < threshold


def dropout(x: Any, rate: float) -> Any:
    """Zero elements of x with probability `rate` and scale the rest by 1/(1 - rate); in evaluation, x itself.

    Raises TraceError outside of a step context.
    """
    context = require_context("dropout")
    if not context.training or rate == 0.0:
        return x
    return np.where(keep_mask(x.shape, rate), x * (1.0 / (1.0 - rate)), 0.0)
