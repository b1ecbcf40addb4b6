"""How long training stands still after `kill -9` of a worker, and what it costs.

    python -m tests.faults.recovery                       # all backends, 50 kills each at least
    python -m tests.faults.recovery local --kills 10      # one of them; p99 of few kills is the longest

A recovery is the time from the kill to the first step that is committed without the dead worker. A step is lost if it
is not recorded, or recorded more than once. Exit code 1: a target is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from benchmarks.common import describe_machine, publish, table
from dtrain.jobs.run_directory import RunDirectory
from dtrain.jobs.runs import describe
from dtrain.train.observer import Observer
from tests.backends import mpirun, ray_head
from tests.support import (
    DIGITS,
    ROOT,
    alive,
    command,
    dtrain,
    ending,
    events_of,
    has_stepped,
    members_of,
    popen,
    result_of,
    service_of,
    spec_of,
    steps_of,
    train,
    wait_until,
)

TARGETS = {"local": 0.5, "ulfm": 2.0, "ray": 3.0}
"""Seconds that 99 % of the recoveries may take."""


@dataclass(frozen=True)
class Recoveries:
    """What the kills of some runs led to: each recovery in seconds, steps lost, and whether the fingerprints stayed."""

    name: str
    target: float
    seconds: Sequence[float]
    steps_lost: int
    is_equal: bool

    def quantile(self, part: float) -> float:
        """The recovery that this part of all recoveries does not exceed."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    @property
    def has_met_target(self) -> bool:
        return self.quantile(0.99) <= self.target and self.steps_lost == 0 and self.is_equal

    def row(self) -> list[str]:
        times = [f"{self.quantile(part):.3f}" for part in (0.5, 0.99)]
        equal = "equal" if self.is_equal else "DIFFERENT"
        kept = "met" if self.has_met_target else "MISSED"
        return [self.name, str(len(self.seconds)), *times, f"{self.target:.1f}", str(self.steps_lost), equal, kept]


HEADER = ["backend", "kills", "p50, s", "p99, s", "target of p99, s", "steps lost", "fingerprint", "target"]


def steps_lost(recorded: Sequence[int], steps: int) -> int:
    """How many of the first ``steps`` steps are not recorded, or more than once."""
    counts = Counter(recorded)
    return sum(counts[step] != 1 for step in range(steps))


class Steps(Observer):
    """Notes the steps in the order in which they come, and the time from a kill to the next step after it.

    Steps that the dying generation had committed are told after the kill too: they are no recovery.
    """

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.killed_at: float | None = None
        self.recovery_seconds: list[float] = []

    def steps(self, records):
        self.recorded += [r.step for r in records]

    def event(self, kind, text, **details):
        if kind == "recovered" and self.killed_at is not None:
            self.recovery_seconds.append(time.monotonic() - self.killed_at)
            self.killed_at = None


def train_under_fire(spec, workers, kills, seed):
    """Train while a random member is killed again and again, ``kills`` times; return the outcome and what was seen."""
    steps = Steps()
    service, launcher = service_of(spec, workers, steps)
    rng = random.Random(seed)
    count, target = 0, 1

    def fire():
        nonlocal count, target
        while service.is_running and count < kills:
            time.sleep(rng.uniform(0.0, 0.002))
            members = service.members
            if steps.killed_at is not None or not members or len(steps.recorded) < target:
                continue
            target = len(steps.recorded) + rng.randrange(1, 50)
            pid = launcher.pid(rng.choice(members))
            if pid is not None:
                steps.killed_at = time.monotonic()
                try:
                    os.kill(pid, signal.SIGKILL)
                    count += 1
                except ProcessLookupError:
                    steps.killed_at = None

    killer = threading.Thread(target=fire)
    killer.start()
    outcome = service.run()
    killer.join()
    return outcome, steps, count


def local(workers: int, kills: int) -> Recoveries:
    """Kill processes of one run on this machine."""
    spec = spec_of(epochs=9 * kills, optimizer__name="momentum")
    outcome, steps, _ = train_under_fire(spec, workers, kills, seed=7 + workers)
    alone = train(spec, 0)
    is_equal = (outcome.fingerprint, outcome.chain) == (alone.fingerprint, alone.chain)
    lost = steps_lost(steps.recorded, spec.epochs * 12)
    name = f"local, {workers} worker{'s' if workers > 1 else ''}"
    return Recoveries(name, TARGETS["local"], steps.recovery_seconds, lost, is_equal)


def kill(run: Path, pid: int) -> float:
    """Kill a worker; return the seconds until the first step that was committed after its death."""
    before = sum(e["event"] == "recovered" for e in events_of(run))
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: sum(e["event"] == "recovered" for e in events_of(run)) > before)
    when = [e["time"] for e in events_of(run) if e["event"] == "recovered"][before]
    return datetime.datetime.fromisoformat(when).timestamp() - at


def next_victims(run: Path, can_replace: bool) -> list[int]:
    """The processes of which one may be killed next, when there is one that another survives; none near the end.

    Only members: training does not stand still for a worker that has yet to begin. Where no worker is replaced, the
    first rank lives: it has the coordinator.
    """
    while True:
        there = alive(run)
        members = [there[worker] for worker in members_of(run) if worker in there and (can_replace or worker != 0)]
        state = describe(RunDirectory.open(run))
        if can_replace and (state.has_ended or (state.step or 0) > 0.8 * (state.steps or 0)):
            return []
        if len(members) > 1 or not can_replace:
            return members
        time.sleep(0.05)


Start = Callable[[Path, Path], subprocess.Popen[str]]


def kills_in_runs(name: str, target: float, kills: int, start: Start, can_replace: bool) -> Recoveries:
    """Kill workers of runs that ``start`` begins, one after the other, until there are enough kills."""
    draw = random.Random(1)
    seconds: list[float] = []
    lost, is_equal = 0, True
    with tempfile.TemporaryDirectory() as temporary, ending():
        folder = Path(temporary)
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump({**DIGITS, "epochs": 300, "eval": {"every": None}}))
        undisturbed = dtrain("run", path, "-q", "--json", "-w", 2, "--run-dir", folder / "undisturbed")
        expected = json.loads(undisturbed.stdout)
        while len(seconds) < kills:
            run = folder / f"after-{len(seconds)}-kills"
            process = start(path, run)
            wait_until(lambda: has_stepped(run) or process.poll() is not None, 240.0)  # noqa: B023
            before = len(seconds)
            while len(seconds) < kills and (there := next_victims(run, can_replace)):
                time.sleep(draw.uniform(0.0, 0.05))
                seconds.append(kill(run, draw.choice(there)))
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
            result = result_of(run)
            assert result["restarts"] == len(seconds) - before, result["restarts"]
            lost += steps_lost([s["step"] for s in steps_of(run)], expected["step"])
            is_equal &= result["fingerprint"] == expected["fingerprint"]
    return Recoveries(name, target, seconds, lost, is_equal)


def ray(kills: int, workers: int = 2) -> Recoveries:
    """Kill workers on a Ray cluster of this machine, which replaces them."""
    with ray_head(cpus=workers) as head:

        def start(path: Path, run: Path) -> subprocess.Popen[str]:
            line = [*command("run", path, "-q", "-w", workers, "--run-dir", run), "--backend", "ray"]
            return popen([*line, "--address", head.address], env=head.environment)

        return kills_in_runs(f"Ray, {workers} workers", TARGETS["ray"], kills, start, can_replace=True)


def ulfm(kills: int, ranks_per_host: int = 0) -> Recoveries:
    """Kill all ranks but the first of five, one after the other, with Open MPI's ULFM."""
    where = {0: "one host", 1: "a host each"}[ranks_per_host]

    def start(path: Path, run: Path) -> subprocess.Popen[str]:
        arguments = ("run", path, "-q", "--run-dir", run)
        options = ("--with-ft", "ulfm")
        return popen(mpirun("openmpi", 5, *arguments, options=options, ranks_per_host=ranks_per_host), cwd=ROOT)

    name = f"Open MPI with ULFM, 5 ranks, {where}"
    return kills_in_runs(name, TARGETS["ulfm"], kills, start, can_replace=False)


MEASURES: dict[str, Callable[[int], Iterator[Recoveries]]] = {
    "local": lambda kills: (local(workers, kills) for workers in (1, 2, 4)),
    "ulfm": lambda kills: (ulfm(kills, ranks_per_host) for ranks_per_host in (0, 1)),
    "ray": lambda kills: (ray(kills) for _ in range(1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.recovery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument("--kills", type=int, default=50, help="at least so many of each (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/recovery.md too")
    options = parser.parse_args()
    if unknown := set(options.backends) - set(MEASURES):
        parser.error(f"no such backend: {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    if options.kills < 1:
        parser.error("--kills: at least 1")
    try:
        found = []
        for name in options.backends or MEASURES:
            for one in MEASURES[name](options.kills):
                print("; ".join(one.row()), file=sys.stderr, flush=True)  # it takes minutes
                found.append(one)
    except pytest.fail.Exception as missing:  # an MPI that is not installed
        parser.error(str(missing))
    words = " ".join([*options.backends, "--kills", str(options.kills)])
    text = f"""# Recovery from `kill -9` of a worker

`python -m tests.faults.recovery {words}`: from the kill to the first step that is committed without the dead worker.
Digits, 8 shards; of fewer than 100 kills, p99 is the longest recovery.
{describe_machine()}.

{table(HEADER, [one.row() for one in found])}"""
    publish("recovery", text, options.keep)
    sys.exit(0 if all(one.has_met_target for one in found) else 1)


if __name__ == "__main__":
    main()
