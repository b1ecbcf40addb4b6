"""Where a process is that says nothing: asked from outside, whatever it does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dtrain.train.stacks import Whereabouts, user_line, whereabouts
from tests.support import wait_until

ANSWERS = "from dtrain.train.stacks import answer_when_asked\nanswer_when_asked()\n"


@contextmanager
def process(folder: Path, code: str) -> Iterator[int]:
    """A process that runs ``code`` from a file and has begun to."""
    file = folder / "model.py"
    file.write_text(f"{code.replace('BEGIN', 'print(flush=True)')}\n")
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ("time.sleep(1000)", "S (sleeping)"),
        ("pow(count, 10**9)", "R (running)"),  # in C, with the interpreter's lock
        ("while count: pass", "R (running)"),
    ],
)
def test_the_line_is_found_whatever_the_process_does(tmp_path, body, state):
    code = f"import time\ncount = 3\n{ANSWERS}def loss():\n    BEGIN; {body}\nloss()"
    code = code.replace("; while", "\n    while")
    with process(tmp_path, code) as pid:
        wait_until(lambda: psutil.Process(pid).status() == (psutil.STATUS_RUNNING if "R" in state else "sleeping"))
        found = whereabouts(pid)
        again = whereabouts(pid)
    assert found.state == again.state == state
    assert re.fullmatch(r"model\.py:[67] in loss", found.line)
    assert str(found) == f"is {state[3:-1]}, at {found.line}"
    assert "in <module>" in found.stack
    assert found.stack.count("most recent call first") == again.stack.count("most recent call first") == 1


def test_a_stopped_process_has_no_stack_but_its_state_is_told(tmp_path):
    with process(tmp_path, f"import time\n{ANSWERS}BEGIN\ntime.sleep(1000)") as pid:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        found = whereabouts(pid)
    assert (found.state, found.line, found.stack) == ("T (stopped)", "", "")
    assert str(found).startswith("is stopped")


def test_a_process_that_would_die_of_the_signal_is_not_asked(tmp_path):
    with process(tmp_path, "import time\nBEGIN\ntime.sleep(1000)") as pid:
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
        found = whereabouts(pid)
        assert (found.state, found.stack) == ("S (sleeping)", "")
        assert psutil.Process(pid).status() == psutil.STATUS_SLEEPING


def test_a_process_that_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert whereabouts(child.pid) == Whereabouts()
    assert str(Whereabouts()) == "is gone, or cannot be looked at"


def test_a_thread_of_this_process_by_its_name():
    go = threading.Event()

    def hang_here():
        go.wait()

    thread = threading.Thread(target=hang_here, name="worker 7")
    thread.start()
    try:
        wait_until(lambda: "in hang_here" in whereabouts(os.getpid(), "worker 7").line, 10)
        assert whereabouts(os.getpid(), "worker 8") == Whereabouts()
    finally:
        go.set()
        thread.join()


def test_the_line_is_that_of_the_worker_and_of_the_user():
    import dtrain.train.worker as worker

    stack = f"""Thread 0x1 (most recent call first):
  File "{os.__file__}", line 4 in wait
  File "/home/me/other.py", line 9 in background

Current thread 0x2 (most recent call first):
  File "{time.__name__}.py", line 3 in sleep
  File "/home/me/model.py", line 14 in loss
  File "{worker.__file__}", line 100 in run
"""
    stack = stack.replace("time.py", os.__file__)
    assert user_line(stack) == "model.py:14 in loss"
    assert user_line(stack.replace("/home/me/model.py", worker.__file__)) == "os.py:3 in sleep"
    assert user_line("") == ""
