"""How a run looks in a terminal: nothing is wider than it, and what matters least goes first."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from dtrain.monitor.alerts import Alert
from dtrain.monitor.records import EvalRecord
from dtrain.monitor.screen import fitted, frame, run_lines, sparkline
from tests.unit.monitor.test_view import NOW, record, running


def full_view(workers: int = 2) -> Any:
    view = running(workers)
    for step in range(1, 40):
        view.take(record(step, loss=40.0 - step, phases={w: {"forward": 0.2, "wait": 0.05} for w in range(workers)}))
    view.take(EvalRecord(40, 4, 0.5, {"accuracy": 0.9}))
    view.take_event({"event": "worker_lost", "worker": 1, "text": "worker 1 died"}, NOW)
    view.take_event({"event": "resized", "text": "4 workers are wanted\x1b[2J"}, NOW)
    view.name = "digits/1"
    return view


def printed(parts: list[Any], width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(Group(*parts))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7.0, math.nan, 0.0, math.inf]) == "█×▁×"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([math.nan]) == "×"
    assert sparkline([]) == ""


def test_fields_are_dropped_from_the_end() -> None:
    assert [fitted(["ab", "cd", "ef"], width) for width in (12, 10, 9, 6, 5, 2, 1, 0)] == [
        "ab  cd  ef", "ab  cd  ef", "ab  cd", "ab  cd", "ab", "ab", "…", "",
    ]  # fmt: skip


def test_the_lines_of_a_run() -> None:
    lines = run_lines(full_view(), 100).plain.splitlines()
    assert lines[0].endswith("  step 40/100  epoch 1/10  0:15 left  40 %")
    assert lines[0].count("━") == 12
    assert lines[1].startswith("loss      1.0000     ▁███▇")
    assert lines[1].endswith("  accuracy 90.00 %  eval loss 0.5000")
    assert lines[2].endswith("  lr 0.1000")
    assert lines[3] == "speed     4.0 steps/s  32 samples/s  2 workers  generation 1"
    assert lines[4].endswith(" 4 workers are wanted [2J")  # what is left above is not told again, nor may it do harm
    assert len(lines) == 5


@pytest.mark.parametrize("width", [1, 5, 8, 20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("is_ascii", [False, True])
def test_nothing_is_wider_than_the_terminal(width: int, is_ascii: bool) -> None:
    view = full_view()
    lines = run_lines(view, width, is_ascii).plain.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not is_ascii or "".join(lines).isascii()
    parts = frame(view, [Alert("stalled", "no step for 12 s")], width, 30, is_ascii, "q quits")
    assert len(printed(parts, width)) <= 30


def test_before_the_first_step_there_is_little_to_show() -> None:
    from dtrain.monitor.view import RunView

    assert run_lines(RunView(100), 80).plain == "─" * 30 + "  step 0/100  0 %"
    assert run_lines(RunView(), 80).plain == "step 0"


def test_the_screen_has_alerts_workers_and_events() -> None:
    lines = printed(frame(full_view(), [Alert("checkpoint_stale", "the newest checkpoint is 99 s old")], 110), 110)
    assert lines[0] == "running  digits/1"
    assert "! checkpoint stale: the newest checkpoint is 99 s old" in lines
    table = next(i for i, line in enumerate(lines) if line.startswith("rank"))
    assert " ".join(lines[table].split()) == (
        "rank worker data ms forward ms backward ms sum ms update ms wait ms shards lost host"
    )
    assert lines[table + 1].split() == ["0", "0", "-", "200", "-", "-", "-", "50", "4", "0", "node-0"]
    assert lines[table + 2].split() == ["1", "1", "-", "200", "-", "-", "-", "50", "4", "1", "node-1"]
    assert lines[-2].endswith("worker_lost: worker 1 died")


def test_a_narrow_screen_keeps_the_columns_that_matter_most() -> None:
    lines = printed(frame(full_view(), [], 40), 40)
    assert any(line.split() == ["rank", "forward", "ms", "backward", "ms", "wait", "ms"] for line in lines)


def test_a_low_screen_says_how_many_workers_are_not_shown() -> None:
    lines = printed(frame(full_view(40), [], 100, 24), 100)
    assert len(lines) <= 24
    shown = sum("node-" in line for line in lines)
    assert f"and {40 - shown} more workers" in lines
    assert shown > 5
    assert sum("node-" in line for line in printed(frame(full_view(40), [], 100), 100)) == 40


def test_a_long_error_is_told_in_full_where_there_is_room() -> None:
    view = full_view()
    view.status, view.result = "failed", {"error": "the loss is nan; " * 20}
    assert "".join(printed(frame(view, [], 60), 60)).count("nan;") >= 19
    assert "".join(printed(frame(view, [], 60, 20), 60)).count("nan;") == 3
