"""A run under mpirun: rank 0 is the coordinator and a worker (a thread of it), every other rank is a worker.

The ranks of one host share the memory of the run as local workers do, so one host needs MPI to start and for nothing
else; between hosts the sums go over MPI. A rank that dies ends the job where MPI ends it; where MPI does not (Open MPI
with ``--with-ft ulfm``, or MPICH with ``-disable-auto-cleanup``), the other ranks finish the step and go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from dtrain.comm.channel import Channel, Message
from dtrain.comm.door import new_token
from dtrain.comm.host import host_addresses, host_id
from dtrain.comm.links import Links
from dtrain.comm.memory import RunMemory
from dtrain.errors import DtrainError, InputError
from dtrain.jobs.in_process import InProcessLauncher
from dtrain.jobs.joining import LOOPBACK, JoiningLauncher, work
from dtrain.jobs.spec import JobSpec
from dtrain.train.program import Program
from dtrain.train.worker import Connect, Worker

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")  # also in `cli.py`


def launched_ranks(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks mpirun, mpiexec or srun have started, as the environment tells; None if nobody did."""
    for name in _SIZES:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    # srun with PMIx tells the number of ranks in variables of Slurm alone, which every job step has.
    if "PMIX_RANK" in environment:
        return int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1)
    return None


class Ranks:
    """The ranks of this run. ``is_first`` is true on rank 0; every rank makes the same calls in the same order."""

    def __init__(self) -> None:
        try:
            from dtrain.comm.mpi import World
        except ImportError as error:
            raise InputError(f"MPI cannot be used: {error}; install dtrain[mpi], or dtrain[mpich]") from None
        self.world = World()
        self.is_first = self.world.rank == 0
        self.size = self.world.size
        hosts = self.world.gather(hashlib.sha256(host_id().encode()).digest())
        self.hosts = len(set(hosts))

    def tell(self, message: Message) -> Message:
        """Rank 0 tells all; returns what it said. Raises what it says if that is an error."""
        said: Message = json.loads(self.world.broadcast(json.dumps(message).encode()))
        return said

    def launcher(self, spec: JobSpec, program: Program) -> MpiLauncher:
        """On rank 0: the launcher of this run. The other ranks are told where the door is."""
        addresses = [LOOPBACK] if self.hosts == 1 else host_addresses()
        if not addresses:
            raise DtrainError("the ranks are on several hosts, but this one has no address besides loopback")
        token = new_token()
        launcher = MpiLauncher(spec, program, token, addresses, self)
        self.tell({"door": launcher.door.addresses, "token": token.decode()})
        return launcher

    def work(self) -> int:
        """On another rank than 0: be a worker to the end; return the exit code."""
        said = self.tell({})
        if "door" not in said:
            return int(said["exit_code"])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # mpirun sends them to all; rank 0 stops the run
        word = work([tuple(a) for a in said["door"]], said["token"].encode(), {"rank": self.world.rank}, self.connect)
        if not word or word["lost"]:
            self.leave(0 if word else 3)
        return 0

    def leave(self, code: int) -> None:
        """End this process without a word to MPI, which might wait for ever for the ranks that were lost."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def connect(self, worker: Worker, message: Message) -> Links:
        """Make the lines to the first ranks of the other hosts; a worker's number is its rank."""
        from dtrain.comm.mpi import MpiLinks

        return MpiLinks(self.world, message["generation"], message["leaders"], message["part"]["host"])


class MpiLauncher(JoiningLauncher):
    """Worker r is rank r; worker 0 is a thread of this process."""

    can_replace = False

    def __init__(self, spec: JobSpec, program: Program, token: bytes, addresses: list[str], ranks: Ranks) -> None:
        super().__init__(spec, token, addresses)
        connect: Connect = ranks.connect
        self._own = InProcessLauncher(program, connect)

    def start(self, worker: int, memory: RunMemory) -> Channel | None:
        return self._own.start(worker, memory) if worker == 0 else None

    def admit(self, hello: dict[str, Any]) -> int | None:
        rank = int(hello["rank"])
        return rank if rank not in self._pids else None

    def pid(self, worker: int) -> int | None:
        return self._own.pid(worker) if worker == 0 else super().pid(worker)

    def kill(self, worker: int) -> None:
        if worker == 0:
            self._own.kill(worker)
        super().kill(worker)
