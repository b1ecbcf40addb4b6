"""What a run shows in the terminal: lines that move, or lines now and then where nothing can; and the last words.

Owns the stream while the run lasts. Invariants: at most ten refreshes a second, however fast the steps are; a stream
that is closed or full never fails a run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from dtrain.monitor.figures import describe_duration, describe_metric, describe_number, short
from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.view import RunView

if TYPE_CHECKING:
    from rich.live import Live

_WINDOW_SECONDS = 10.0


class Progress:
    """Shows the records of a run as they come. Any thread may call it; ``close`` it, also on errors."""

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        first_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        refresh_seconds: float = 0.1,
        plain_seconds: float = 5.0,
    ) -> None:
        """Show a run from ``first_step`` committed steps to ``total_steps`` on ``stream`` (stderr unless given).

        On a terminal the lines are refreshed at most every ``refresh_seconds``; elsewhere a line is written at the
        first step, at most every ``plain_seconds`` after it, and at every evaluation.
        """
        self._view = RunView(total_steps, max(1, steps_per_epoch))
        self._view.step = first_step
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_live = _is_terminal(self._stream)
        self._interval = refresh_seconds if self._is_live else plain_seconds
        self._live: Live | None = None
        self._samples = 0
        self._shown_at = -float("inf")
        self._shown_step = first_step
        self._marks: deque[tuple[float, int, int]] = deque([(clock(), first_step, 0)])  # time, steps, samples
        self._drawn: list[int] = []  # the lengths of the lines on the terminal
        self._drawn_width = 0
        self._is_closed = False
        self._lock = threading.RLock()

    def update(self, record: StepRecord | EvalRecord) -> None:
        """Take a record; show it if it is time to."""
        with self._lock:
            if not self._is_closed:
                self._take(record)

    def _take(self, record: StepRecord | EvalRecord) -> None:
        self._view.take(record)
        if isinstance(record, EvalRecord):
            if not self._is_live:
                self._print(_describe_eval(record))
            return
        self._samples += record.samples
        now = self._clock()
        if now - self._shown_at >= self._interval:
            self._show(now)

    def event(self, values: Mapping[str, Any]) -> None:
        """Take an event, as ``events.jsonl`` has it; only a terminal shows it."""
        with self._lock:
            self._view.take_event(values, time.time())

    def note(self, text: str) -> None:
        """Show a line that stays, above the lines that move."""
        with self._lock:
            self._print(text)

    def close(self) -> None:
        """Leave the last figures standing and give the terminal back. A second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._finish()

    def _finish(self) -> None:
        if self._live is not None:
            with self._forgiving():
                self._live.stop()
            self._live = None
        self._is_live = False
        if self._view.record is not None and (self._shown_step < self._view.step or self._interval < 1):
            self._show(self._clock())
        self._is_closed = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self._view.step
        self._marks.append((now, self._view.step, self._samples))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW_SECONDS:
            self._marks.popleft()
        (t0, step0, samples0), (t1, step1, samples1) = self._marks[0], self._marks[-1]
        if t1 > t0 and step1 > step0:
            self._view.measured = (step1 - step0) / (t1 - t0), (samples1 - samples0) / (t1 - t0)
        if self._is_live:
            with self._forgiving():
                self._refresh()
        else:
            self._print("  ".join(self._fields()))

    def _fields(self) -> list[str]:
        """Return the parts of a plain line."""
        view = self._view
        record = view.record
        assert record is not None
        fields = [
            f"epoch {record.epoch + 1}/{view.epochs}",
            f"step {view.step}/{view.steps}",
            f"loss {describe_number(record.loss)}",
            f"grad norm {describe_number(record.gradient_norm)}",
        ]
        if view.measured is not None:
            fields.append(f"{short(view.measured[1])} samples/s")
            if view.seconds_left is not None:
                fields.append(f"{describe_duration(view.seconds_left)} left")
        return fields

    def _refresh(self) -> None:
        from rich.cells import cell_len

        from dtrain.monitor.screen import run_lines

        if self._live is None:
            self._live = _start_live(self._stream)
        console = self._live.console
        width = console.width
        if width < self._drawn_width:  # the terminal has wrapped what was drawn, which is to be drawn over
            rows = sum(max(1, -(-length // width)) for length in self._drawn)
            self._live._live_render._shape = (width, rows)
        text = run_lines(self._view, width, console.options.ascii_only)
        self._drawn, self._drawn_width = [cell_len(line) for line in text.plain.split("\n")], width
        self._live.update(text, refresh=True)

    def _print(self, text: str) -> None:
        with self._forgiving():
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._stream.write(f"{text}\n")
                self._stream.flush()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # the reader is gone, the disk is full or the stream was closed
            self._is_closed = True


def final_summary(result: Mapping[str, Any], run_directory: str | os.PathLike[str] | None = None) -> str:
    """Return what a run says at its end, a fact a line, from the content of ``result.json``.

    Facts that the result does not have are left out; ``numerics`` may be a line or a mapping of fields.
    """
    status = str(result["status"])
    step, seconds = result.get("step"), result.get("seconds")
    head = status if step is None else f"{status} after {step} step{'' if step == 1 else 's'}"
    lines = [head if seconds is None else f"{head} in {describe_duration(float(seconds), decimals=1)}"]
    if result.get("error"):
        lines.append(f"error          {result['error']}")
    if result.get("train_loss") is not None:
        lines.append(f"train loss     {describe_number(float(result['train_loss']))}")
    evaluation = dict(result.get("eval") or {})
    for name in sorted(evaluation, key=lambda name: (name != "accuracy", name != "loss", name)):
        lines.append(f"{f'test {name}':<14} {describe_metric(name, float(evaluation[name]))}")
    numerics = result.get("numerics")
    if isinstance(numerics, Mapping):
        numerics = ", ".join(f"{field} {value}" for field, value in numerics.items())
    for name, value in [
        ("fingerprint", result.get("fingerprint")),
        ("numerics", numerics),
        ("run directory", run_directory or result.get("run_directory")),
    ]:
        if value:
            lines.append(f"{name:<14} {os.fspath(value)}")
    return "\n".join(lines)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _start_live(stream: TextIO) -> Live:
    from rich.console import Console
    from rich.live import Live

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich's own ends the process; here the caller goes on without a display

    console = Patient(file=stream)
    # What the user's model prints goes above the line, but a pipe stays a pipe.
    live = Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=_is_terminal(sys.stdout),
        redirect_stderr=_is_terminal(sys.stderr),
        vertical_overflow="crop",
    )
    live.start()
    return live


def _eval_fields(record: EvalRecord) -> list[str]:
    return [
        f"eval loss {describe_number(record.loss)}",
        *(f"{k} {describe_metric(k, v)}" for k, v in sorted(record.metrics.items())),
    ]


def _describe_eval(record: EvalRecord) -> str:
    return "  ".join([f"epoch {record.epoch}", f"step {record.step}", *_eval_fields(record)])
