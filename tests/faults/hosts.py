"""A run on several hosts that are processes of this machine with names of their own, over TCP on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dtrain.comm.channel import Channel
from dtrain.comm.door import new_token
from dtrain.comm.host import HOST_VARIABLE
from dtrain.comm.memory import RunMemory
from dtrain.comm.threads import one_blas_thread
from dtrain.jobs.build import build
from dtrain.jobs.joining import LOOPBACK, JoiningLauncher
from dtrain.jobs.spec import JobSpec
from dtrain.train.numerics import numerics_class
from dtrain.train.observer import Observer
from dtrain.train.service import RunSettings, Service
from tests.support import ROOT

WORK = """
import json, sys
from dtrain.comm.threads import set_one_thread
set_one_thread()
from dtrain.jobs.joining import work
address, token, number = json.loads(sys.argv[1])
work([tuple(address)], token.encode(), {"number": number})
"""


class HostsLauncher(JoiningLauncher):
    """Starts worker w on host ``where[w]``, and those that come later on the host of one that is gone, or on any."""

    def __init__(self, spec: JobSpec, where: Sequence[int]) -> None:
        self._secret = new_token()
        super().__init__(spec, self._secret, [LOOPBACK])
        self._free = list(where)
        self.where: dict[int, int] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, worker: int, memory: RunMemory) -> Channel | None:
        host = self.where[worker] = self._free.pop(0) if self._free else worker % 2
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop(HOST_VARIABLE, None)
        if host:
            environment[HOST_VARIABLE] = f"host {host}"
        said = json.dumps([self.door.addresses[0], self._secret.decode(), worker])
        self.processes[worker] = subprocess.Popen([sys.executable, "-c", WORK, said], env=environment)
        return None

    def admit(self, hello: dict[str, Any]) -> int | None:
        return int(hello["number"])

    def forget(self, worker: int) -> None:
        super().forget(worker)
        self._free.append(self.where[worker])

    def on(self, host: int) -> list[int]:
        """The workers of a host that are alive."""
        return [w for w, p in self.processes.items() if self.where[w] == host and p.poll() is None]

    def signal(self, worker: int, number: int = signal.SIGKILL) -> None:
        self.processes[worker].send_signal(number)

    def close(self) -> None:
        super().close()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def service_on(
    spec: JobSpec, where: Sequence[int], observer: Observer, timeout_seconds: float = 20.0
) -> tuple[Service, HostsLauncher]:
    """A service with a worker for each entry of ``where``, on that host; 0 is the coordinator's."""
    launcher = HostsLauncher(spec, where)
    settings = RunSettings(len(where), checkpoint_seconds=0.0, timeout_seconds=timeout_seconds)
    with one_blas_thread():
        numerics = numerics_class()
    return Service(build(spec), settings, launcher, numerics, observer=observer), launcher
