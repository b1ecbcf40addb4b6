"""From the shell prompt to the first committed step of the digits job, and the time of `import dtrain`.

    python benchmarks/startup.py [--runs 7] [--workers 2]

Medians over runs; the first step is the event `first_step` in the run's events.jsonl. Beside them, as the measure of
the machine, the time of `import numpy`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = Path(__file__).resolve().parents[1] / "examples" / "digits.yaml"


def first_step(workers: int) -> float:
    """Seconds from the start of the command to its first committed step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        start = time.time()
        code = "from dtrain.cli import main; main()"
        arguments = ["run", JOB, "--workers", workers, "--run-dir", run, "-q", "--set", "epochs=2"]
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        at = next(e["time"] for e in events if e["event"] == "first_step")
        return datetime.datetime.fromisoformat(at).timestamp() - start


def importing(module: str) -> float:
    """Seconds of a process that imports ``module``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    measures = {
        "import numpy": lambda: importing("numpy"),
        "import dtrain": lambda: importing("dtrain"),
        "import dtrain.graph": lambda: importing("dtrain.graph"),
        f"first step, {options.workers} workers": lambda: first_step(options.workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(options.runs):
        for name, measure in measures.items():
            seconds[name].append(measure())
    print(f"| seconds, {options.runs} runs | min | median | max |\n|---|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
