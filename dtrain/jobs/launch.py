"""``dtrain launch mpi``: start mpirun, and start it anew from the last checkpoint when MPI ends the job with a rank."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dtrain.errors import InputError, WorkerError
from dtrain.jobs.run_directory import RunDirectory

_RELEASE_SECONDS = 30.0
_COMMAND = "from dtrain.cli import main; main()"


def find_mpiexec() -> str:
    """Return the path of mpiexec: the one beside this Python if there is one. Raises InputError."""
    own = Path(sys.executable).parent / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec") or shutil.which("mpirun")
    if found is None:
        raise InputError("mpiexec: there is none; install dtrain[mpich], or an MPI of the system")
    return found


def flavour(mpiexec: str) -> str:
    """Return "openmpi" or "mpich", or "other"."""
    said = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False).stdout.lower()
    if "open mpi" in said or "openrte" in said or "prrte" in said:
        return "openmpi"
    return "mpich" if "hydra" in said or "mpich" in said or "intel" in said else "other"


def options_for(kind: str, ranks: int, with_ulfm: bool) -> list[str]:
    """The options of mpiexec for so many ranks on this machine."""
    options = ["-n", str(ranks)]
    if kind == "openmpi":
        options += ["--bind-to", "none"]
        if ranks > (os.cpu_count() or 1):
            options += ["--oversubscribe"]
        if os.getuid() == 0:
            options += ["--allow-run-as-root"]
        if with_ulfm:
            options += ["--with-ft", "ulfm"]
    elif with_ulfm:
        raise InputError(f"--ulfm: needs Open MPI 5; this mpiexec is of another kind ({kind})")
    return options


def launch_mpi(
    job: Sequence[str],
    directory: RunDirectory,
    ranks: int,
    max_restarts: int,
    extra: Sequence[str] = (),
    with_ulfm: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Run a job under mpiexec; return its exit code.

    ``job`` are the arguments of ``dtrain`` for the first start. When mpiexec ends without the job having said how it
    ended, because a rank died, it is resumed from its last checkpoint, at most ``max_restarts`` times. ``extra`` are
    options of mpiexec. Raises InputError, and WorkerError when there are no restarts left.
    """
    mpiexec = find_mpiexec()
    kind = flavour(mpiexec)
    environment = dict(os.environ)
    if kind == "mpich" and ranks > (os.cpu_count() or 1):
        environment.setdefault("MPIR_CVAR_POLLS_BEFORE_YIELD", "1")
    arguments = list(job)
    for attempt in range(max_restarts + 1):
        command = [mpiexec, *options_for(kind, ranks, with_ulfm), *extra, sys.executable, "-P", "-c", _COMMAND]
        code, came = _run([*command, *arguments], environment)
        if not directory.job_file.exists():
            return code
        _wait_for_release(directory)
        result = directory.read_result()
        # When a rank dies, Open MPI sends the others the signal with which a user stops a run.
        was_ended = result is None or (result["status"] == "stopped" and result["restarts"] > 0 and not came)
        if result is not None and not was_ended:
            return int(result["exit_code"])
        if attempt < max_restarts:
            say(f"the ranks were ended by MPI (exit code {code}); start {attempt + 1} of {max_restarts} anew")
        arguments = ["resume", str(directory.path), *(a for a in ("--quiet", "--json") if a in job)]
    raise WorkerError(
        f"the ranks were ended by MPI (exit code {code}) and no restart is left of --max-restarts {max_restarts}; the "
        f"last checkpoint is kept: dtrain resume {directory.path}"
    )


def _wait_for_release(directory: RunDirectory) -> None:
    """Wait until no process runs the directory: mpiexec may be gone before the first rank is."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while directory.holder() is not None and time.monotonic() < deadline:
        time.sleep(0.05)


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run mpiexec to its end; return its exit code, and whether the user has stopped it."""
    process = subprocess.Popen(command, env=environment)
    came = False

    def hand_on(number: int, frame: object) -> None:
        nonlocal came
        came = True
        if number == signal.SIGTERM:  # a terminal's Ctrl-C reaches mpiexec by itself
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    return (128 - code if code < 0 else code), came
