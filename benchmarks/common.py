"""What the benchmarks share: ranks as processes with one thread each, gloo on the loopback interface, tables.

Every figure comes from interleaved rounds of the contestants in one run, so that the load that other programs put on
the machine falls on all of them; the ratios are to be trusted, the absolute times are those of a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).with_name("results")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_GLOO_TIMEOUT = timedelta(seconds=120)


class Ranks:
    """``world_size`` forked processes that each run ``serve(connection, rank, world_size)`` with gloo initialised.

    They are forked before torch is imported anywhere. ``ask`` sends one request to all and returns their answers in
    the order of the ranks; an exception in a rank is raised here.
    """

    def __init__(self, world_size: int, serve: Callable[[Any], Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("fork")
        self._lines: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            here, there = context.Pipe()
            self._lines.append(here)
            process = context.Process(
                target=_rank_main, args=(there, tuple(self._lines), rank, world_size, self._folder.name, serve)
            )
            process.start()
            there.close()
            self._processes.append(process)

    def ask(self, request: Any) -> list[Any]:
        for line in self._lines:
            line.send(request)
        answers = []
        for rank, line in enumerate(self._lines):
            try:
                kind, value = line.recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} of the PyTorch processes died") from None
            if kind == "error":
                raise RuntimeError(f"rank {rank}: {value}")
            answers.append(value)
        return answers

    def close(self) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rank_main(
    line: Connection,
    inherited: Sequence[Connection],
    rank: int,
    world_size: int,
    folder: str,
    serve: Callable[[Any], Any],
) -> None:
    import traceback

    for other in inherited:  # else no rank would see the end of its line
        other.close()
    os.environ.update(_ONE_THREAD, GLOO_SOCKET_IFNAME="lo")
    threadpool_limits(1, user_api="blas")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=_GLOO_TIMEOUT
    )
    while True:
        try:
            request = line.recv()
        except EOFError:
            break
        try:
            line.send(("answer", serve(request)))
        except Exception:
            line.send(("error", traceback.format_exc()))
    dist.destroy_process_group()


def describe_machine() -> str:
    """One line: cores, processor, versions, and how busy the machine was, this benchmark included."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {version('torch')}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right, padded to be read as text too."""
    lines = [list(header), *[list(r) for r in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = ["-" * widths[0], *["-" * (w - 1) + ":" for w in widths[1:]]]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([row(lines[0]), "|" + "|".join(f" {r} " for r in rule) + "|", *[row(line) for line in lines[1:]]])


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def microseconds(seconds: float) -> str:
    """A time in µs with three significant digits at least."""
    value = seconds * 1e6
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def publish(name: str, text: str, is_kept: bool) -> None:
    """Print a result; with ``is_kept`` write it to ``benchmarks/results/<name>.md`` as well."""
    print(text)
    if is_kept:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text + "\n")
