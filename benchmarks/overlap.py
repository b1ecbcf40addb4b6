"""What it is worth to send gradients while backward runs: the step between two hosts with and without it.

    python benchmarks/overlap.py                    # two simulated hosts at 1 Gbit/s, MPICH; needs root
    python benchmarks/overlap.py --bandwidth 10gbit

The same job (mlp-wide, batch 256, 8 shards) runs in turn with ``overlap: true`` and ``false``; a figure is the median
over the runs of the mean time of a step, without the first ones. The fingerprints must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import yaml

JOB = {
    "model": {"name": "mlp", "hidden": [1024, 1024, 1024]},
    "data": {"name": "digits"},
    "optimizer": {"name": "momentum", "lr": 0.02},
    "batch": 256,
    "eval": {"every": None},
    "checkpoint": {"every": None},
    "monitor": {"metrics_port": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The step between two hosts with and without overlap.")
    parser.add_argument("--bandwidth", default="1gbit", help="of each host's link")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from cluster.simulate import Hosts

    seconds: dict[str, list[float]] = {"true": [], "false": []}
    fingerprints = set()
    with Hosts(2, bandwidth=options.bandwidth) as hosts, tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "wide.yaml")
        job.write_text(yaml.safe_dump({**JOB, "steps": options.steps}))
        mpiexec = Path(sys.executable).parent / "mpiexec"
        for number in range(options.rounds):
            for overlap, found in seconds.items():
                run = Path(folder, f"{number}-{overlap}")
                line = [mpiexec, "-launcher", "ssh", "-launcher-exec", hosts.agent, "-f", hosts.hostfile("mpich")]
                line += ["-n", 2, sys.executable, "-c", "from dtrain.cli import main; main()", "run", job, "-q"]
                line += ["--run-dir", run, "--set", f"overlap={overlap}"]
                done = hosts[0].run(line, env={**os.environ, "UCX_TLS": "tcp,self"}, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                fingerprints.add(json.loads((run / "result.json").read_text())["fingerprint"])
                records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                steps = [r["seconds"] for r in records if r["type"] == "step"][5:]
                found.append(sum(steps) / len(steps))
    assert len(fingerprints) == 1, fingerprints
    with_it, without = (statistics.median(seconds[key]) for key in ("true", "false"))
    print(f"{options.bandwidth}, {options.rounds} rounds of {options.steps} steps in turn, median of the means:")
    print(f"with overlap {with_it * 1e3:.1f} ms, without {without * 1e3:.1f} ms a step, ratio {with_it / without:.2f}")


if __name__ == "__main__":
    main()
