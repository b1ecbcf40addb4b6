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


def main() -> None:
    """The entry point of the command ``dtrain``."""
    set_one_thread()
    zygote = None
    arguments = sys.argv[1:]
    if arguments[:1] in (["run"], ["resume"]) and not {"--help", "--workers=0"} & set(arguments):
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
    finally:
        if zygote is not None:
            zygote.close()
