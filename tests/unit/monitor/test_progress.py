"""What the terminal shows."""

import io
import re

import pytest

from dtrain.monitor.figures import describe_duration, describe_number, short
from dtrain.monitor.progress import Progress, final_summary
from dtrain.monitor.records import EvalRecord, StepRecord


class Clock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal; counts how often it is flushed with something new."""

    def isatty(self):
        return True


def record(step, loss=0.5, samples=128):
    return StepRecord(step, step // 12, loss, 1.25, 1.0, 1e-3, samples, 0.1)


def run(progress, clock, steps, seconds=0.125, first=0):
    for step in range(first, steps):
        clock.now += seconds
        progress.update(record(step))


def test_plain_lines_now_and_then_and_at_every_evaluation():
    clock, stream = Clock(), io.StringIO()
    with Progress(120, 12, stream=stream, clock=clock, plain_seconds=5.0) as progress:
        run(progress, clock, 100)
        progress.update(EvalRecord(96, 8, 0.25, {"accuracy": 0.96944, "bits": 3.0}))
    assert stream.getvalue().splitlines() == [
        "epoch 1/10  step 1/120  loss 0.5000  grad norm 1.2500  1.0k samples/s  0:15 left",
        "epoch 4/10  step 41/120  loss 0.5000  grad norm 1.2500  1.0k samples/s  0:10 left",
        "epoch 7/10  step 81/120  loss 0.5000  grad norm 1.2500  1.0k samples/s  0:05 left",
        "epoch 8  step 96  eval loss 0.2500  accuracy 96.94 %  bits 3.0000",
        "epoch 9/10  step 100/120  loss 0.5000  grad norm 1.2500  1.0k samples/s  0:02 left",
    ]


def test_the_last_line_is_not_repeated():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1, 12, stream=stream, clock=clock)
    run(progress, clock, 1)
    progress.close()
    progress.close()
    progress.update(record(5))
    assert stream.getvalue() == "epoch 1/1  step 1/1  loss 0.5000  grad norm 1.2500  1.0k samples/s\n"


def test_a_resumed_run_counts_only_its_own_time():
    clock, stream = Clock(), io.StringIO()
    with Progress(1000, 12, first_step=900, stream=stream, clock=clock) as progress:
        run(progress, clock, 901, first=900)
    assert stream.getvalue().endswith("step 901/1000  loss 0.5000  grad norm 1.2500  1.0k samples/s  0:12 left\n")


def test_the_speed_follows_the_last_seconds():
    clock, stream = Clock(), io.StringIO()
    with Progress(10000, 12, stream=stream, clock=clock) as progress:
        run(progress, clock, 100, seconds=1.0)
        run(progress, clock, 400, seconds=0.125, first=100)
    assert "128 samples/s" in stream.getvalue().splitlines()[1]
    assert "1.0k samples/s" in stream.getvalue().splitlines()[-1]


def test_a_terminal_shows_moving_lines_and_the_last_figures_stay(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    clock, stream = Clock(), Terminal()
    with Progress(120, 12, stream=stream, clock=clock) as progress:
        progress.event({"event": "generation", "generation": 1, "members": [0, 1], "restarts": 0})
        run(progress, clock, 50)
        progress.update(EvalRecord(48, 4, 0.25, {"accuracy": 0.9}))
        run(progress, clock, 60, first=50)
        progress.note("worker 1 died; worker 2 takes its place")
        run(progress, clock, 120, first=60)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())  # without colours
    assert "step 60/120  epoch 5/10  0:08 left  50 %" in text
    assert "loss      0.5000     ▁" in text
    assert "accuracy 90.00 %  eval loss 0.2500" in text
    assert "speed     8.0 steps/s  1.0k samples/s  2 workers  generation 1" in text
    assert "worker 1 died; worker 2 takes its place\n" in text
    last = "epoch 10/10  step 120/120  loss 0.5000  grad norm 1.2500  1.0k samples/s\n"
    assert text.endswith(f"\x1b[1A\x1b[2K{last}")  # in the place of the lines that moved
    lines = 5  # the bar, two curves, the speed and the newest event
    assert text.count("\x1b[1A") >= (lines - 1) * (text.count("step 60/120") + 1)  # each drawn over the one before
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back


def test_no_colour_is_honoured(monkeypatch):
    shown = {}
    for value in ("", "1"):
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("NO_COLOR", value)
        clock, stream = Clock(), Terminal()
        with Progress(120, 12, stream=stream, clock=clock) as progress:
            run(progress, clock, 60)
        shown[value] = stream.getvalue()
    assert "\x1b[36m" in shown[""]
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown["1"])


def test_a_terminal_that_became_narrower_is_drawn_over(monkeypatch):
    """It has wrapped what was there; so many rows are taken back."""
    monkeypatch.setenv("COLUMNS", "100")
    clock, stream = Clock(), Terminal()
    progress = Progress(120, 12, stream=stream, clock=clock)
    run(progress, clock, 60)
    last = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).rsplit("\x1b[2K", 1)[1].split("\n")
    progress._live.console.width = 30
    stream.seek(0)
    stream.truncate()
    clock.now += 1
    progress.update(record(60))
    rows = sum(-(-len(line.strip("\r")) // 30) for line in last)
    assert rows > len(last)
    assert stream.getvalue().count("\x1b[1A") == rows - 1
    progress.close()


def test_at_most_ten_refreshes_a_second():
    clock, stream = Clock(), Terminal()
    with Progress(100000, 12, stream=stream, clock=clock) as progress:
        run(progress, clock, 2000, seconds=2**-10)
    assert 15 <= len(set(re.findall(r"step (\d+)/", stream.getvalue()))) <= 21


@pytest.mark.parametrize(
    ("columns", "shown"),
    [("8", "step 60…"), ("30", "step 60/120  epoch 5/10"), ("50", "0:08 left  50 %"), ("200", "0:08 left  50 %")],
)
def test_a_narrow_terminal_drops_what_matters_least(columns, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    clock, stream = Clock(), Terminal()
    progress = Progress(120, 12, stream=stream, clock=clock)
    run(progress, clock, 60)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", stream.getvalue())
    parts = [part.strip() for part in re.split(r"[\r\n]+", text)]
    assert max(map(len, parts)) <= int(columns)
    assert [part for part in parts if part.endswith(shown)]
    assert ("━" in text) == (columns == "200")
    progress.close()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    clock, stream = Clock(), Terminal()
    with Progress(120, 12, stream=stream, clock=clock) as progress:
        run(progress, clock, 2)
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_broken_stream_never_fails_the_run(is_terminal):
    class Broken(io.StringIO):
        def isatty(self):
            return is_terminal

        def write(self, text):
            raise BrokenPipeError

    clock = Clock()
    with Progress(120, 12, stream=Broken(), clock=clock) as progress:
        run(progress, clock, 100)
        progress.update(EvalRecord(1, 0, 0.5))
        progress.note("x")


def test_a_closed_stream_never_fails_the_run():
    stream, clock = io.StringIO(), Clock()
    stream.close()
    with Progress(120, 12, stream=stream, clock=clock) as progress:
        run(progress, clock, 100)


def test_the_summary():
    result = {
        "status": "succeeded",
        "step": 240,
        "train_loss": 0.01234567,
        "eval": {"loss": 0.0912, "accuracy": 0.975, "bits": 2.0},
        "fingerprint": "ab" * 32,
        "numerics": {"numpy": "2.4.6", "blas": "openblas 0.3.31"},
        "seconds": 3.21,
    }
    assert final_summary(result, "runs/digits/1").splitlines() == [
        "succeeded after 240 steps in 3.2 s",
        "train loss     0.0123",
        "test accuracy  97.50 %",
        "test loss      0.0912",
        "test bits      2.0000",
        f"fingerprint    {'ab' * 32}",
        "numerics       numpy 2.4.6, blas openblas 0.3.31",
        "run directory  runs/digits/1",
    ]


def test_the_summary_of_a_run_that_failed_early():
    assert final_summary({"status": "failed", "step": 1, "error": "nan at step 1", "numerics": "x"}).splitlines() == [
        "failed after 1 step",
        "error          nan at step 1",
        "numerics       x",
    ]
    assert final_summary({"status": "pending"}) == "pending"


def test_figures():
    assert [describe_number(x) for x in (0.0, 1.5, -2.0, 5e-4, 12345.0, float("nan"), float("inf"))] == [
        "0.0000", "1.5000", "-2.0000", "5.000e-04", "1.234e+04", "nan", "inf",
    ]  # fmt: skip
    assert [short(x) for x in (0.5, 12.3, 999.0, 1500.0, 2.5e6, 3e9)] == ["0.5", "12", "999", "1.5k", "2.5M", "3.0G"]
    assert [describe_duration(x) for x in (0.2, 59.7, 61, 3599.6, 7325)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
    ]
