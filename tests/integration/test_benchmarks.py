"""The benchmarks run and compare the same computation: sums and losses are checked by the benchmarks themselves.

Their times are not looked at.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark with --quick from another directory than its own."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT.parent,
    )


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a text, as rows of cells, without the rule below the header."""
    found: list[list[list[str]]] = []
    is_inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not is_inside:
                found.append([])
            if not re.fullmatch(r"[|\-: ]+", line):
                found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        is_inside = line.startswith("|")
    return found


def positive(cell: str) -> bool:
    return float(cell.rstrip("×").replace(",", "")) > 0


@pytest.mark.parametrize("ranks", ["2", "3"])
def test_the_all_reduce_benchmark_prints_a_checked_table(ranks: str) -> None:
    done = run("all_reduce.py", "--ranks", ranks, "--pin")
    assert done.returncode == 0, done.stderr
    ((header, *rows),) = tables(done.stdout)
    assert header == [
        "size", "dtrain sum, µs", "dtrain sum and norm, µs", "gloo, µs", "sum, GB/s",
        "gloo / sum", "gloo / sum and norm",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["4KB", "256KB"]
    for row in rows:
        assert all(positive(row[i]) for i in (1, 2, 3, 5, 6))
    assert f"{ranks} ranks" in done.stdout
    assert "Sums checked" in done.stdout


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_the_step_benchmark_trains_both_sides_alike(optimizer: str) -> None:
    done = run("step.py", "--optimizer", optimizer)
    assert done.returncode == 0, done.stderr
    times, phases = tables(done.stdout)
    assert times[0] == [
        "workload", "dtrain V=8, µs", "dtrain V=2, µs", "PyTorch, µs", "its optimizer",
        "V=8 / PyTorch", "V=2 / PyTorch", "losses differ by",
    ]  # fmt: skip
    assert [row[0] for row in times[1:]] == ["softmax", "mlp"]
    for row in times[1:]:
        assert all(positive(row[i]) for i in (1, 2, 3, 5, 6))
        assert row[4] in ("plain", "foreach", "fused")
        assert float(row[7]) < 5e-4
    assert phases[0] == ["workload", "data", "forward", "backward", "sum", "update", "wait", "outside", "coordinator"]
    assert [row[0] for row in phases[1:]] == ["softmax V=8", "softmax V=2", "mlp V=8", "mlp V=2"]
    for row in phases[1:]:
        assert all(positive(cell) for cell in row[1:6])


def test_the_benchmark_of_tables_trains_all_alike() -> None:
    done = run("tables.py")
    assert done.returncode == 0, done.stderr
    ((header, *rows),) = tables(done.stdout)
    assert header == ["", "step, µs", "dtrain, rows / this"]
    assert [row[0].split(",")[0] for row in rows] == ["dtrain"] * 3 + ["PyTorch"] * 2
    assert all(positive(cell) for row in rows for cell in row[1:])


def test_the_engine_benchmark_prints_a_checked_table() -> None:
    done = run("engine.py")
    assert done.returncode == 0, done.stderr
    ((header, *rows),) = tables(done.stdout)
    assert header[:3] == ["function", "nodes", "steps"]
    assert [row[0].split()[0] for row in rows] == ["mlp", "rnn", "chain"]
    for row in rows:
        assert len(row) == len(header)
        assert all(positive(cell) for cell in row[1:4])
        assert float(row[-1]) < 0.5  # memory is reused


def test_the_benchmark_of_monitoring_compares_equal_runs() -> None:
    done = run("monitoring.py")
    assert done.returncode == 0, done.stderr
    ((header, row),) = tables(done.stdout)
    assert header[:4] == ["workload", "off, µs a step", "on / off", "norms at every step / off"]
    assert row[0] == "softmax"
    assert all(positive(cell.split(" ")[0]) for cell in row[1:-1])
    assert row[-1].endswith(" %")
