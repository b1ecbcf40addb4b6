"""A real Ray cluster on simulated hosts: one node per host, token authentication on, jobs API on the first.

Owns the nodes from the `with` to its end, their token and their logs. Every node has its own network, so the ports are
the same on all. Does not import Ray; the nodes are `ray start --block` of this interpreter's environment.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from cluster.simulate.hosts import Hosts, SimulationError

GCS_PORT = 6379
DASHBOARD_PORT = 8265
_AGENT_PORTS = {
    "--node-manager-port": 6380,
    "--object-manager-port": 6381,
    "--runtime-env-agent-port": 6382,
    "--dashboard-agent-grpc-port": 6383,
    "--dashboard-agent-listen-port": 6384,
    "--metrics-export-port": 6385,
    "--min-worker-port": 20000,
    "--max-worker-port": 20999,
}
_LOOK = """
import json, sys, time, urllib.request
url, token, count = sys.argv[1], open(sys.argv[2]).read(), int(sys.argv[3])
request = urllib.request.Request(url + "/nodes?view=summary", headers={"Authorization": "Bearer " + token})
while True:
    try:
        nodes = json.load(urllib.request.urlopen(request, timeout=5))["data"]["summary"]
        if sum(node["raylet"].get("state") == "ALIVE" for node in nodes) >= count:
            break
    except (OSError, KeyError, ValueError):
        pass
    time.sleep(0.1)
"""


class RayCluster:
    """A node in each of ``hosts``, with ``cpus`` each; ``options`` are further words for every `ray start`.

    ``address`` is the cluster's, for drivers in a host; ``dashboard`` is where jobs are submitted, from any host;
    ``environment`` is what both need: pass it to `Host.run`. At the end all hosts are booted afresh: whatever still
    runs in them is ended. Raises SimulationError if the nodes are not up in ``seconds``.
    """

    def __init__(self, hosts: Hosts, *, cpus: int = 2, options: Sequence[str] = (), seconds: float = 90.0) -> None:
        self.hosts, self.cpus = hosts, cpus
        self._options, self._seconds = options, seconds
        self._ray = Path(sysconfig.get_path("scripts")) / "ray"
        if not self._ray.exists():
            raise SimulationError("Ray is not installed for this interpreter; pip install 'dtrain[ray]'")
        self._token = hosts.directory / "ray-token"
        self._nodes: dict[int, subprocess.Popen[Any]] = {}
        head = hosts[0].address
        self.address = f"{head}:{GCS_PORT}"
        self.dashboard = f"http://{head}:{DASHBOARD_PORT}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def __enter__(self) -> Self:
        try:
            self._token.touch(0o600)
            self._token.write_text(secrets.token_hex(32))
            for host in self.hosts:
                self.join(host.index)  # all at once: a node waits for the head by itself
            self.wait(len(self.hosts))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def join(self, index: int) -> None:
        """Start the node of a host that has none: at the beginning, or after `Hosts.kill` and `Hosts.boot`."""
        host = self.hosts[index]
        where = ["--head", f"--port={GCS_PORT}"] if index == 0 else [f"--address={self.address}"]
        dashboard = [f"--dashboard-host={host.address}", f"--dashboard-port={DASHBOARD_PORT}"] if index == 0 else []
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with self.log(index).open("ab") as log:
            self._nodes[index] = host.popen(
                [
                    *(self._ray, "start", "--block", *where, *dashboard, f"--node-ip-address={host.address}"),
                    *(f"{option}={port}" for option, port in _AGENT_PORTS.items()),
                    *(f"--num-cpus={self.cpus}", "--object-store-memory=100000000"),
                    *(f"--temp-dir={host.temporary / 'ray'}", "--include-log-monitor=false", *self._options),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, count: int) -> None:
        """Wait until the dashboard knows of ``count`` nodes that are alive. Raises SimulationError."""
        command = [sys.executable, "-IS", "-c", _LOOK, self.dashboard, self._token, count]
        look = self.hosts[0].popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + self._seconds
        try:
            while look.poll() is None:
                for index, node in self._nodes.items():
                    if node.poll() is not None and self.hosts[index].is_up:
                        raise SimulationError(f"the Ray node of host{index} has ended: {self._last_line(index)}")
                if time.monotonic() > deadline:
                    raise SimulationError(f"{count} Ray nodes are not up in {self._seconds} s: {self._last_line(0)}")
                time.sleep(0.02)
        finally:
            look.kill()
            look.wait()

    def log(self, index: int) -> Path:
        """Where the node of a host writes what `ray start` says."""
        return Path(self.hosts.directory / f"host{index}.ray.log")

    def _last_line(self, index: int) -> str:
        lines = self.log(index).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _end(self) -> None:
        for index in self._nodes:
            self.hosts.kill(index)
        for index, node in self._nodes.items():
            node.wait()
            self.hosts.boot(index)
        self._token.unlink(missing_ok=True)
