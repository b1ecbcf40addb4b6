"""Which of local processes, MPI and Ray work on this machine, and what to do where one does not.

Looks, and changes nothing. What could end or hang a process, as loading an MPI library can, is tried in another one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dtrain import __version__
from dtrain.comm.memory import anonymous_file
from dtrain.errors import DtrainError
from dtrain.jobs.backend import is_ordered_machine, worker_count
from dtrain.train.numerics import describe, numerics_class

_SECONDS = 30.0
_LEAST_RAY = (2, 59)
_ASK_MPI = """
from mpi4py import MPI
print(" ".join(MPI.Get_library_version().split()))
try:
    MPI.COMM_SELF.Is_revoked()
    print("yes")
except Exception:
    print("no")
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``text`` says what was found, and how to mend it unless it is ok."""

    part: Literal["local", "mpi", "ray"]
    name: str
    state: Literal["ok", "missing", "broken"]
    text: str


@dataclass(frozen=True)
class Report:
    """All checks. A part works if each of its checks is ok; Ray also works where no cluster runs yet."""

    checks: tuple[Check, ...]

    def works(self, part: str) -> bool:
        """Whether jobs can be run in this way."""
        return all(c.state == "ok" for c in self.checks if c.part == part and c.name != "cluster")

    @property
    def is_local_fine(self) -> bool:
        """Whether the way works that needs nothing but this machine."""
        return self.works("local")

    def to_json(self) -> dict[str, Any]:
        """Return the checks, and of each part whether it works."""
        parts = {part: self.works(part) for part in ("local", "mpi", "ray")}
        return {**parts, "dtrain": __version__, "checks": [asdict(check) for check in self.checks]}

    def text(self) -> str:
        """Return a line for each check."""
        return "\n".join(f"{c.state:<8} {c.part:<6} {c.name:<9} {c.text}" for c in self.checks)


def examine() -> Report:
    """Look at everything; takes a second or two."""
    return Report((*_local(), *_mpi(), *_ray()))


def _local() -> list[Check]:
    cores = worker_count("auto") or os.cpu_count() or 1
    checks = [
        Check("local", "python", "ok", f"{platform.python_implementation()} {platform.python_version()}"),
        Check("local", "numerics", "ok", describe(numerics_class())),
        Check("local", "cores", "ok", f"{cores} that this process may use"),
    ]
    machine = platform.machine()
    if is_ordered_machine():
        checks.append(Check("local", "processor", "ok", machine))
    else:
        text = f"{machine}; worker processes need x86-64, whose stores stay in order: use --workers 0"
        checks.append(Check("local", "processor", "broken", text))
    try:
        os.close(anonymous_file(4096))
        named = "" if hasattr(os, "memfd_create") else ", in the folder of temporary files: there is no memfd here"
        checks.append(Check("local", "memory", "ok", f"can be shared between processes{named}"))
    except OSError as error:
        text = f"none to share: {error.strerror}; allow memfd_create, or use --workers 0"
        checks.append(Check("local", "memory", "broken", text))
    return checks


def _mpi() -> list[Check]:
    checks, library = [], ""
    if importlib.util.find_spec("mpi4py") is None:
        checks.append(Check("mpi", "mpi4py", "missing", "install it with pip install 'dtrain[mpi]'"))
    else:
        version = importlib.metadata.version("mpi4py")
        code, out, error = _run([sys.executable, "-c", _ASK_MPI])
        if code == 0:
            library, revocable = out.splitlines()[-2:]
            ulfm = "with ULFM" if revocable == "yes" else "without ULFM: a rank that dies ends the job"
            checks.append(Check("mpi", "mpi4py", "ok", f"{version} on {_library(library)}, {ulfm}"))
        else:
            text = f"{version} loads no MPI library ({error}); pip install mpich, or your system's MPI"
            checks.append(Check("mpi", "mpi4py", "broken", text))
    launcher = _mpiexec()
    if launcher is None:
        checks.append(Check("mpi", "mpiexec", "missing", "not on PATH; pip install mpich, or your system's MPI"))
        return checks
    _, out, error = _run([launcher, "--version"])
    flavour = _flavour(f"{out} {error}")
    if library and flavour != "unknown" and _flavour(library) not in (flavour, "unknown"):
        text = f"{launcher} is of {flavour}, mpi4py is on {_flavour(library)}: its ranks would not see each other"
        checks.append(Check("mpi", "mpiexec", "broken", f"{text}; put the other one first on PATH"))
    else:
        checks.append(Check("mpi", "mpiexec", "ok", f"{launcher}, {flavour}"))
    return checks


def _ray() -> list[Check]:
    if importlib.util.find_spec("ray") is None:
        return [Check("ray", "ray", "missing", "install it with pip install 'dtrain[ray]'")]
    version = importlib.metadata.version("ray")
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < _LEAST_RAY:
        least = ".".join(map(str, _LEAST_RAY))
        return [Check("ray", "ray", "broken", f"{version} is too old; pip install 'ray[default]>={least}'")]
    if importlib.util.find_spec("aiohttp") is None:
        return [Check("ray", "ray", "broken", f"{version} without its job API; pip install 'ray[default]'")]
    return [Check("ray", "ray", "ok", version), _cluster()]


def _cluster() -> Check:
    given = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    try:
        from dtrain.jobs.ray_client import connect, cpus, told

        with told(given or "auto"):
            client = connect(given or "auto")
            free = cpus(client)
            where, there = client.get_address(), client._server_ray_version
    except DtrainError as error:
        if given is None and "token" not in str(error):
            text = "none runs on this machine; start one with ray start --head, or give --address"
            return Check("ray", "cluster", "missing", text)
        return Check("ray", "cluster", "broken", str(error))
    except Exception as error:  # Ray's, of any kind: a doctor does not fall ill
        return Check("ray", "cluster", "broken", f"{type(error).__name__}: {' '.join(str(error).split())}")
    some = "" if free is None else f", {free[0]} of {free[1]} CPUs free"
    return Check("ray", "cluster", "ok", f"{where}, Ray {there}{some}")


def _mpiexec() -> str | None:
    """The launcher that a shell would start, or the one beside this Python."""
    beside = Path(sys.executable).parent / "mpiexec"
    return shutil.which("mpiexec") or (str(beside) if beside.exists() else None)


def _library(text: str) -> str:
    """A library's name and version from its long description of itself."""
    found = re.search(r"(MPICH|Open MPI|Intel\(R\) MPI Library|MVAPICH)\D*([\d.]+\w*)", text)
    return f"{found[1]} {found[2]}" if found else text[:60]


def _flavour(text: str) -> str:
    for name, pattern in (("Intel MPI", "Intel"), ("MPICH", "HYDRA|MPICH"), ("Open MPI", "Open ?MPI|OpenRTE|PRRTE")):
        if re.search(pattern, text, re.I):
            return name
    return "unknown"


def _run(command: list[str]) -> tuple[int, str, str]:
    """Exit code, output, and the last line of what went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", " ".join(str(error).split())
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return done.returncode, done.stdout, lines[-1]
