"""What it costs a run to be watched: the same run with and without metrics, interleaved.

    python benchmarks/monitoring.py [--workloads softmax mlp mlp-wide] [--optimizer momentum|adam] [--workers 2]
                                    [--rounds 15] [--seconds 0.6] [--quick] [--keep]

Three contestants of each workload run the same steps in segments of about ``--seconds``, in turning order:

- off: no norms are sampled, and of what the coordinator reads nothing is written or kept;
- on: as any run has it. Norms at one step a second, metrics.jsonl, the figures behind the endpoint; and a process
  scrapes the endpoint once a second;
- every step: as on, but with norms at every step. It shows what sampling saves.

The figure is the median over the rounds of the ratio of step times in one round, with the quartiles; the losses of all
three must be the same numbers, or the benchmark fails. What sampling costs a run is told too: what a sampled step takes
longer, by the time from one to the next.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from common import describe_machine, median, microseconds, publish, table
from step import OPTIMIZERS, WORKLOADS, DtrainRun, Segment, Workload, make_program

from dtrain.comm.threads import one_blas_thread
from dtrain.monitor.endpoint import MetricsEndpoint
from dtrain.monitor.records import StepRecord
from dtrain.train.norms import LEAST_STEPS

SHARDS = 8
CONTESTANTS = {"off": {"norms_seconds": 0.0}, "on": {"norms_seconds": 1.0}, "every step": {"norms_every": 1}}
DEFAULT = ("softmax", "mlp", "mlp-wide")
TARGET = 1.01

SCRAPER = """
import sys, time, urllib.request
while True:
    with urllib.request.urlopen(sys.argv[1], timeout=10) as answer:
        answer.read()
    time.sleep(1.0)
"""


class Unwatched(DtrainRun):
    """A run whose records go nowhere."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        self.count(records)


class Watched(DtrainRun):
    """A run that is logged, served and scraped."""

    def serve(self) -> None:
        """Start the endpoint and who scrapes it."""
        self._endpoint = MetricsEndpoint(self._metrics)
        url = f"{self._endpoint.url}?token={self._endpoint.token}"
        self._scraper = subprocess.Popen([sys.executable, "-c", SCRAPER, url])

    def close(self) -> None:
        super().close()
        self._scraper.kill()
        self._scraper.wait()
        self._endpoint.close()


def compare(workload: Workload, optimizer: str, workers: int, rounds: int) -> dict[str, list[Segment]]:
    """Run all contestants round by round; the first round warms up and is not counted."""
    found: dict[str, list[Segment]] = {name: [] for name in CONTESTANTS}
    runs: dict[str, DtrainRun] = {}
    try:
        for name, settings in CONTESTANTS.items():
            kind = Unwatched if name == "off" else Watched
            program = make_program(workload, optimizer, SHARDS, workload.segment * (rounds + 2))
            runs[name] = kind(program, workers, **settings)
            if isinstance(run := runs[name], Watched):
                run.serve()
        order = list(CONTESTANTS)
        for number in range(rounds + 1):
            for name in order[number % 3 :] + order[: number % 3]:
                segment = runs[name].segment()
                if number:
                    found[name].append(segment)
    finally:
        for run in runs.values():
            run.close()
    for name, segments in found.items():
        if [s.losses for s in segments] != [s.losses for s in found["off"]]:
            raise SystemExit(f"{workload.name}: the losses of {name!r} are other ones than without metrics")
    return found


def fitted(workload: Workload, optimizer: str, workers: int, seconds: float) -> Workload:
    """The workload with segments of about so many seconds."""
    run = Unwatched(make_program(workload, optimizer, SHARDS, workload.segment * 3), workers)
    try:
        run.segment()
        step_seconds = run.segment().step_seconds
    finally:
        run.close()
    return replace(workload, segment=max(10, round(seconds / step_seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=DEFAULT)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="momentum")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--quick", action="store_true", help="one round of a small workload, to see that all runs")
    parser.add_argument("--keep", action="store_true", help="write the result to benchmarks/results")
    options = parser.parse_args()
    if options.quick:
        options.workloads, options.rounds, options.seconds = ("softmax",), 1, 0.02
    machine, rows = describe_machine(), []
    with one_blas_thread():
        for name in options.workloads:
            workload = fitted(WORKLOADS[name], options.optimizer, options.workers, options.seconds)
            found = compare(workload, options.optimizer, options.workers, options.rounds)
            step_seconds = median(s.step_seconds for s in found["off"])
            row, ratios = [name, microseconds(step_seconds)], [0.0]
            for contestant in ("on", "every step"):
                pairs = zip(found[contestant], found["off"], strict=True)
                ratios = sorted(a.step_seconds / b.step_seconds for a, b in pairs)
                low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
                row.append(f"{median(ratios):.3f} ({low:.3f} to {high:.3f})")
            longer = (median(ratios) - 1) * step_seconds
            rows.append([*row, f"{100 * longer / max(1.0, LEAST_STEPS * step_seconds):.2f} %"])
    heading = ["workload", "off, µs a step", "on / off", "norms at every step / off", "sampling, of the time"]
    text = f"""# What it costs to be watched

{machine}

{options.workers} workers, {SHARDS} shards, {options.optimizer}, {options.rounds} rounds, {options.seconds:g} s each.
Medians of the ratio within a round, and quartiles; the target is below {TARGET}. Where the quartiles lie further apart
than the median is from 1, other programs on the machine were the larger part of the difference.

{table(heading, rows)}"""
    publish("monitoring", text, options.keep)


if __name__ == "__main__":
    main()
