"""What the engine costs around NumPy: recording, planning, Python per operation, and the memory planned.

    python benchmarks/engine.py            # --quick: small graphs, to see that it runs; --keep writes results/engine.md

Three functions with their gradients: an MLP, a recurrent network in a Python loop, and a chain of elementwise
operations whose graph, gradients included, has 10,000 nodes. Times of recording and planning are the shortest of three.
What Python costs in the steady state is measured twice, in turns with the run itself: with every call of the plan
replaced by one of a C function that does nothing with the same arguments, and with the plan's calls written out as the
lines of one function. Kernels that are Python functions of several NumPy calls count as NumPy in both.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from common import describe_machine, publish, table
from threadpoolctl import threadpool_limits

from dtrain import graph

HEADER = [
    "function", "nodes", "steps", "trace, ms", "backward, ms", "plan, ms", "run per step, ns", "Python per step, ns",
    "run / written out", "peak planned, KB", "all values, KB", "planned / all",
]  # fmt: skip


def mlp(p: Any, x: Any, y: Any) -> Any:
    for w, b in p[:-1]:
        x = np.maximum(x @ w + b, 0)
    s = x @ p[-1][0] + p[-1][1]
    s = s - np.max(s, axis=1, keepdims=True)
    return np.mean(np.log(np.sum(np.exp(s), axis=1)) - s[np.arange(len(s)), y])


def rnn(p: Any, xs: Any, y: Any) -> Any:
    h = np.zeros((xs.shape[1], p["u"].shape[0]), xs.dtype)
    for x in xs:
        h = np.tanh(x @ p["w"] + h @ p["u"] + p["b"])
    return np.mean((h - y) ** 2)


def chain(x: Any, length: int) -> Any:
    for _ in range(length):
        x = np.sin(x) * 0.5 + x
    return np.sum(x)


def workloads(is_quick: bool) -> Iterator[tuple[str, Callable[..., Any], list[Any], int]]:
    """Yield (name, function, arguments, how many of the first inputs are differentiated)."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    sizes, steps, links = [784, 256, 128, 10], 5 if is_quick else 50, 20 if is_quick else 1250
    layers = [(normal(m, n), normal(n)) for m, n in pairwise(sizes)]
    yield "mlp 784–256–128–10, batch 16", mlp, [layers, normal(16, 784), rng.integers(0, 10, 16)], 6
    cell = {"b": normal(64), "u": normal(64, 64), "w": normal(64, 64)}
    yield f"rnn 64–64, {steps} steps, batch 16", rnn, [cell, normal(steps, 16, 64), normal(16, 64)], 3
    yield f"chain of {links} links, 64 elements", partial(chain, length=links), [normal(64)], 1


def recorded(function: Callable[..., Any], arguments: Sequence[Any], count: int) -> tuple[list[float], Any, Any]:
    """Record and plan value and gradients; return the times of trace, backward and plan in seconds, graph and plan."""
    gc.collect()
    times = [time.perf_counter()]
    made = graph.trace(function, *arguments)
    times.append(time.perf_counter())
    gradients = graph.backward(made.outputs, None, made.inputs[:count])
    times.append(time.perf_counter())
    plan = graph.Plan(made.inputs, [*made.outputs, *gradients])
    times.append(time.perf_counter())
    return [b - a for a, b in pairwise(times)], made, plan


def taken_apart(call: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the function of a call, and what it is called with."""
    return (call.func, call.args, call.keywords) if isinstance(call, partial) else (call, (), {})


def empty(calls: Sequence[Any]) -> Callable[[], None]:
    """Return the loop of `Bound.run` over calls that do nothing: `"".format` takes any arguments and ignores them."""
    nothing = []
    for call in calls:
        _, arguments, keywords = taken_apart(call)
        nothing.append(partial("".format, *arguments, **keywords))

    def run() -> None:
        for call in nothing:
            call()

    return run


def written_out(calls: Sequence[Any]) -> Callable[[], None]:
    """Return a function with a line for each call, as one would write it by hand: `f7(a12, a13, a20)`."""
    names: dict[int, str] = {}
    values: dict[str, Any] = {}

    def name(value: Any) -> str:
        if id(value) not in names:
            names[id(value)] = f"v{len(names)}"
            values[names[id(value)]] = value
        return names[id(value)]

    lines = ["def run():"]
    for call in calls:
        function, arguments, keywords = taken_apart(call)
        given = [*map(name, arguments), *[f"{key}={name(value)}" for key, value in keywords.items()]]
        lines.append(f"    {name(function)}({', '.join(given)})")
    exec("\n".join(lines), values)
    return values["run"]  # type: ignore[no-any-return]


def row(name: str, function: Callable[..., Any], arguments: list[Any], count: int, rounds: int) -> list[str]:
    found = [recorded(function, arguments, count) for _ in range(3)]
    trace, backward, planning = (min(times) * 1e3 for times in zip(*[f[0] for f in found], strict=True))
    _, made, plan = found[-1]
    arrays = [np.array(node.value, order="C") for node in plan.inputs]
    bound = plan.bind(arrays)
    contestants = [bound.run, empty(bound.calls), written_out(bound.calls)]
    contestants[0]()
    expected = [o.copy() for o in bound.outputs]
    for o in bound.outputs:
        o[...] = np.nan
    contestants[2]()
    if any(a.tobytes() != b.tobytes() for a, b in zip(expected, bound.outputs, strict=True)):
        raise SystemExit(f"{name}: the calls written out compute something else")
    seconds: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for kind, run in enumerate(contestants):
            start = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - start)
    run_time, python_time, _ = (statistics.median(s) / len(bound.calls) * 1e9 for s in seconds)
    ratio = statistics.median(a / c for a, c in zip(seconds[0], seconds[2], strict=True))
    return [
        name, f"{len(made.nodes):,}", f"{len(plan.steps):,}", f"{trace:.1f}", f"{backward:.1f}", f"{planning:.1f}",
        f"{run_time:,.0f}", f"{python_time:.0f}", f"{ratio:.2f}",
        f"{plan.arena_bytes / 1e3:,.0f}", f"{plan.buffer_bytes / 1e3:,.0f}",
        f"{plan.arena_bytes / plan.buffer_bytes:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small graphs and few rounds: only shows that it runs")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--keep", action="store_true", help="write the table to results/engine.md")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    with threadpool_limits(1):
        rows = [row(*workload, rounds) for workload in workloads(options.quick)]
    text = "\n".join(
        [
            "# The engine: recording, planning, Python per step, memory",
            "",
            table(HEADER, rows),
            "",
            "Nodes are those of value and gradients; steps are the calls of the plan. Peak planned is the arena in",
            "which the intermediate values lie, all values what they would take without reuse; outputs lie in arrays",
            "of their own.",
            "",
            describe_machine(),
        ]
    )
    publish("engine", text, options.keep)


if __name__ == "__main__":
    main()
