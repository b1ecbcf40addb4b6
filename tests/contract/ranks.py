"""Ranks as processes of this machine: each runs a body, and says in its exit code how that ended."""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from dtrain.comm.barrier import Halted
from dtrain.comm.links import LinkLost

DEADLINE_SECONDS = 60.0
HALTED, LOST = 7, 8  # how a rank ends that was halted, or whose line to another host was lost


def outcome(body: Callable[[], None]) -> int:
    """Run a body; return 0, HALTED, LOST, or another number for an error."""
    try:
        body()
    except Halted:
        return HALTED
    except LinkLost as lost:
        print(lost, file=sys.stderr)
        return LOST
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@dataclass(frozen=True)
class Child:
    """A process that runs a body."""

    pid: int

    @classmethod
    def of(cls, body: Callable[[], None]) -> Child:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = outcome(body)
            finally:
                sys.stderr.flush()
                os._exit(code)
        return cls(pid)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it unless it has been waited for."""
        with suppress(ProcessLookupError, ChildProcessError):
            self.kill()
            os.waitpid(self.pid, 0)

    def join(self) -> int:
        """The exit code, minus the signal that ended it, as in subprocess."""
        end = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(end, select.POLLIN)
        is_over = bool(poll.poll(DEADLINE_SECONDS * 1000))
        os.close(end)
        if not is_over:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        assert is_over, "a rank hangs"
        return os.waitstatus_to_exitcode(status)


def resident_bytes() -> int:
    """The memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
