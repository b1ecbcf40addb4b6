"""The command line: one clear line for a user's mistake, and the exit codes 0 done, 2 bad input, 3 failed with a
checkpoint kept, 4 numerics refused, 130/143 stopped by a signal.

The commands are in `commands.py`. The workers' process is started before they are imported, with NumPy and all the
rest, so that both sides import at the same time.
"""

from __future__ import annotations

import os
import sys

from dtrain.comm.threads import set_one_thread
from dtrain.errors import DtrainError

MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK")
"""Set by mpirun, mpiexec or srun for the ranks that they start."""


def abort_mpi() -> None:
    """Print the traceback at hand, then end all ranks at once."""
    import traceback

    traceback.print_exc()
    sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(1)


def main() -> None:
    """The entry point of the command ``dtrain``."""
    set_one_thread()
    zygote = None
    arguments = sys.argv[1:]
    under_mpi = any(name in os.environ for name in MPI_VARIABLES)
    is_local = not under_mpi and not {"--help", "--workers=0", "--backend", "--backend=ray"} & set(arguments)
    if arguments[:1] in (["run"], ["resume"]) and is_local:
        from dtrain.jobs.zygote import Zygote

        zygote = Zygote()
    try:
        from dtrain.commands import app

        app(obj=zygote)
    except DtrainError as error:
        print(f"dtrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output is gone; say nothing at exit either
        sys.exit(1)
    except Exception:
        if under_mpi:  # the other ranks would wait for this one for ever
            abort_mpi()
        raise
    finally:
        if zygote is not None:
            zygote.close()
