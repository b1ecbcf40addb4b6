"""Where a process is that says nothing: the stacks of its threads, and what the kernel knows of it.

A worker has SIGUSR1 write its stacks into an anonymous file. `faulthandler` does that inside of the signal, so it works
while the interpreter is in C code and holds its lock. Who is on the same host sends the signal and reads the file.
Nothing is asked of a process that has no such file: the signal would end it. Linux; elsewhere nothing is found.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

_NAME = "dtrain-stacks"
_WAIT_SECONDS, _LOOK_SECONDS, _LOOKS = 0.5, 0.005, 4
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.M)
_DTRAIN, _NUMPY = str(Path(__file__).parents[1]) + os.sep, str(Path(np.__file__).parent) + os.sep
_WORKER = _DTRAIN + os.path.join("train", "worker.py")
_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_MOST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Whereabouts:
    """Where a process is: ``state`` as the kernel names it ("S (sleeping)"), ``waits_in``, the kernel's function that
    it sleeps in, ``line``, the innermost line of the user's code, and the ``stack``, innermost call first; "" for what
    is not known."""

    state: str = ""
    waits_in: str = ""
    line: str = ""
    stack: str = ""

    def __str__(self) -> str:
        where = f"at {self.line}" if self.line else f"in the kernel's {self.waits_in}" if self.waits_in else ""
        what = ", ".join(part for part in (self.state[2:].strip("()"), where) if part)
        return f"is {what or 'gone, or cannot be looked at'}"

    def plain(self) -> dict[str, str]:
        """The fields, for a message or an event."""
        return asdict(self)


def answer_when_asked() -> None:
    """From now on SIGUSR1 makes this process write where it is, for `whereabouts`."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)


def whereabouts(process: int, thread: str = "") -> Whereabouts:
    """Say where a process of this host and user is; of this process, where its thread of that name is.

    Takes half a second at most, and a few milliseconds as a rule. A stopped process has no stack to tell.
    """
    if process == os.getpid():
        stack = _own_stack(thread)
        return Whereabouts(line=user_line(stack), stack=stack[:_MOST_CHARACTERS])
    found = re.search(r"^State:\s*(.*)$", _read(f"/proc/{process}/status"), re.M)
    state, waits_in = found[1] if found else "", _read(f"/proc/{process}/wchan").strip("0\n")
    stack = "" if state[:1] in ("T", "t", "Z", "X", "") else _ask(process)
    return Whereabouts(state, waits_in, user_line(stack), stack[:_MOST_CHARACTERS])


def user_line(stack: str) -> str:
    """The innermost line outside of dtrain, NumPy and the standard library, of the thread that is a worker; the
    innermost one at all if there is none: "model.py:14 in loss"."""
    threads = [_FRAME.findall(part) for part in stack.split("\n\n")]
    order = sorted(threads, key=lambda frames: not any(file == _WORKER for file, _, _ in frames))
    frames = next((frames for frames in order if frames), [])
    theirs = [f for f in frames if not f[0].startswith((_DTRAIN, _NUMPY, _LIBRARY, "<frozen "))]
    return next((f"{os.path.basename(file)}:{line} in {name}" for file, line, name in theirs or frames), "")


def _ask(process: int) -> str:
    with suppress(OSError):
        folder = Path(f"/proc/{process}/fd")
        for entry in folder.iterdir():
            if not os.readlink(entry).startswith(f"/memfd:{_NAME}"):
                continue
            file = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
            try:
                start = os.fstat(file).st_size
                os.kill(process, signal.SIGUSR1)
                return os.pread(file, _settled(file, start) - start, start).decode(errors="replace").strip()
            finally:
                os.close(file)
    return ""


def _settled(file: int, start: int) -> int:
    """Wait until something was added to a file and nothing more comes; return its size."""
    deadline, size, quiet = time.monotonic() + _WAIT_SECONDS, start, 0
    while time.monotonic() < deadline and quiet < _LOOKS:
        time.sleep(_LOOK_SECONDS)
        now = os.fstat(file).st_size
        quiet = quiet + 1 if now == size and now > start else 0
        size = now
    return size


def _own_stack(thread: str) -> str:
    known = next((t.ident for t in threading.enumerate() if t.name == thread), None)
    frame: Any = sys._current_frames().get(known) if known is not None else None
    lines = []
    while frame is not None:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join(lines)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
