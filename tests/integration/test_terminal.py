"""The progress line on a real pseudo-terminal."""

import os
import pty
import subprocess
import sys


def test_a_pseudo_terminal_end_to_end():
    code = """
from dtrain.monitor.progress import Progress
from dtrain.monitor.records import StepRecord
progress = Progress(3, 3, refresh_seconds=0)
for step in range(3):
    progress.update(StepRecord(step, 0, 0.5, 1.25, 1.0, 1e-3, 128, 0.1))
    print("from the model", step)
progress.close()
"""
    controller, terminal = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=terminal, env=env)
    os.close(terminal)
    shown = b""
    while True:
        try:
            data = os.read(controller, 4096)
        except OSError:  # Linux' way to say that the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(controller)
    assert child.communicate()[0] == b"from the model 0\nfrom the model 1\nfrom the model 2\n"
    assert child.returncode == 0
    assert b"step 3/3" in shown
    assert b"from the model" not in shown
