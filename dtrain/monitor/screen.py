"""How a run looks in a terminal: lines of text that fit a width, from what a `RunView` knows.

The same parts make up the few lines of ``dtrain run`` and the full screen of ``dtrain top``. In a narrow terminal what
matters least is left out first; nothing wraps. Colour only adds to what the words say.
"""

from __future__ import annotations

import datetime
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from dtrain.comm.memory import PHASES
from dtrain.monitor.alerts import Alert
from dtrain.monitor.figures import describe_duration, describe_metric, describe_number, short
from dtrain.monitor.view import NOTED, STEADY, RunView

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_BAR = "━", "─"
_BAR_WIDTH = 30
_LABEL, _FIGURE = 10, 10
_SHOWN_EVENTS = 8


def sparkline(values: Sequence[float], blocks: str = BLOCKS) -> str:
    """One character for each value, from the lowest to the highest of the finite ones; × for one that is not finite."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    top = len(blocks) - 1
    bad = "×" if blocks == BLOCKS else "x"
    scale = top / (high - low) if high > low else 0.0
    return "".join(blocks[round((v - low) * scale)] if math.isfinite(v) else bad for v in values)


def fitted(fields: Sequence[str], width: int, is_ascii: bool = False) -> str:
    """Join as many of the fields, the most important first, as a line has room for; the first is cut if it must be."""
    kept = list(fields)
    while len(kept) > 1 and len("  ".join(kept)) > width:
        kept.pop()
    return cut("  ".join(kept), width, is_ascii)


def cut(text: str, width: int, is_ascii: bool = False) -> str:
    """The text on one line of that width, without what could move the cursor, and in ASCII if it must be."""
    text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
    if is_ascii:
        text = text.encode("ascii", "replace").decode()
    end = ("..." if is_ascii else "…")[: max(0, width)]
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - len(end))) + end


def head_fields(view: RunView) -> list[str]:
    """How far the run is."""
    epochs = view.epochs
    fields = [f"step {view.step}" + ("" if view.steps is None else f"/{view.steps}")]
    if view.record is not None:
        fields.append(f"epoch {view.record.epoch + 1}" + ("" if epochs is None else f"/{epochs}"))
    if view.seconds_left is not None:
        fields.append(f"{describe_duration(view.seconds_left)} left")
    if view.steps:
        fields.append(f"{100 * view.step / view.steps:.0f} %")
    return fields


def curve_fields(view: RunView) -> list[tuple[str, str, Callable[[int], list[float]], list[str]]]:
    """The lines with a curve: label, figure, its points, and what stands behind it."""
    record = view.record
    if record is None:
        return []
    behind = []
    if view.eval is not None:
        behind = [f"eval loss {describe_number(view.eval.loss)}"]
        metrics = sorted(view.eval.metrics.items(), key=lambda item: (item[0] != "accuracy", item[0]))
        behind[:0] = [f"{name} {describe_metric(name, value)}" for name, value in metrics]
    rate = [f"lr {describe_number(record.learning_rate)}"] if math.isfinite(record.learning_rate) else []
    if record.clip_scale < 1:
        rate.append(f"clipped to {record.clip_scale:.2f}")
    return [
        ("loss", describe_number(record.loss), view.loss.points, behind),
        ("grad norm", describe_number(record.gradient_norm), view.gradient_norm.points, rate),
    ]


def speed_fields(view: RunView) -> list[str]:
    """How fast it is, and with whom."""
    fields = []
    if view.speed is not None:
        steps, samples = view.speed
        fields = ([] if steps is None else [f"{short(steps)} steps/s"]) + [f"{short(samples)} samples/s"]
    if view.members:
        fields.append(f"{len(view.members)} worker{'s' * (len(view.members) > 1)}")
        fields.append(f"generation {view.generation}")
    if view.restarts:
        fields.append(f"{view.restarts} lost")
    if view.skipped:
        fields.append(f"{view.skipped} skipped")
    return fields


def run_lines(view: RunView, width: int, is_ascii: bool = False, events: int = 1) -> Text:
    """The few lines of ``dtrain run``: how far, loss, gradient norm, speed, and what happened last.

    What stays on the terminal above them is not told again.
    """
    from rich.text import Text

    lines = [_bar_line(view, width, is_ascii)]
    lines += [_curve_line(*curve, width, is_ascii) for curve in curve_fields(view)]
    if speed := speed_fields(view):
        lines.append(Text(fitted([f"{'speed':<{_LABEL}}{speed[0]}", *speed[1:]], width, is_ascii)))
    for event in view.last_events(events, NOTED):
        lines.append(Text(cut(f"{_clock(event.at)} {event.text}", width, is_ascii), style="dim"))
    return Text("\n").join(lines)


def _bar_line(view: RunView, width: int, is_ascii: bool) -> Text:
    from rich.text import Text

    text = fitted(head_fields(view), width, is_ascii)
    room = min(width - len(text) - 2, _BAR_WIDTH)
    if not view.steps or room < 10:
        return Text(text, style="bold")
    done = min(room, room * view.step // view.steps)
    full, empty = ("#", "-") if is_ascii else _BAR
    line = Text.assemble((full * done, "cyan"), (empty * (room - done), "dim"), "  ", (text, "bold"))
    return line


def _curve_line(
    label: str, figure: str, points: Callable[[int], list[float]], behind: list[str], width: int, is_ascii: bool
) -> Text:
    from rich.text import Text

    start = f"{label:<{_LABEL}}{figure:<{_FIGURE}}"
    fields = list(behind)
    while fields and len(start) + 2 + len("  ".join(fields)) > width:
        fields.pop()
    end = "  ".join(fields)
    room = min(width - len(start) - (len(end) + 3 if end else 1), 60)
    if room < 6:
        return Text(fitted([start.rstrip(), *fields], width, is_ascii))
    curve = sparkline(points(room), ASCII_BLOCKS if is_ascii else BLOCKS)
    return Text.assemble(start, " ", (f"{curve:<{room}}", "cyan"), "  " if end else "", end)


# --- the full screen -------------------------------------------------------------------------------------------------


def frame(
    view: RunView,
    alerts: Sequence[Alert],
    width: int,
    height: int | None = None,
    is_ascii: bool = False,
    note: str = "",
) -> list[Text | Table]:
    """The screen of ``dtrain top``: the run, its alerts, its workers and its last events, within ``height`` lines.

    Without a height there is room for every worker, and long texts are told in full.
    """
    from rich.text import Text

    def line(text: str, style: str) -> Text:
        return Text(cut(text, len(text) * 2 if height is None else width, is_ascii), style=style, overflow="fold")

    title = fitted([f"{view.status}  {view.name}", *([note] if note else [])], width, is_ascii)
    run = run_lines(view, width, is_ascii, events=0)
    parts: list[Text | Table] = [Text(title, style="bold"), run]
    parts += [line(f"! {alert.name.replace('_', ' ')}: {alert.text}", "bold red") for alert in alerts]
    if view.result is not None and view.result.get("error"):
        parts.append(line(f"error: {view.result['error']}", "bold red"))
    room = len(view.members) + 4 + _SHOWN_EVENTS
    if height is not None:
        room = max(0, height - len(parts) - run.plain.count("\n"))
    shown = min(len(view.members), room - 4) if room > 5 else 0  # and a few lines for the events
    if shown > 0:
        parts.append(workers_table(view, width, shown))
        room -= shown + 1
        if shown < len(view.members):
            parts.append(Text(f"and {len(view.members) - shown} more workers"[:width], style="dim"))
            room -= 1
    for event in view.last_events(min(_SHOWN_EVENTS, room), STEADY):
        parts.append(line(f"{_clock(event.at)} {event.kind}: {event.text}", "dim"))
    return parts


def workers_table(view: RunView, width: int, count: int) -> Table:
    """A line for each of the first ``count`` ranks: its milliseconds a step by phase, its shards, and where it is."""
    from rich.table import Table

    columns = ["rank", "worker", *PHASES, "shards", "lost", "host"]
    rows = []
    for rank, worker in enumerate(view.members[:count]):
        known, shards = view.workers.get(worker), view.shards_of(rank)
        seconds = view.step_seconds or 0.0
        shares = {} if known is None else known.shares
        times = [f"{1000 * seconds * shares[p]:.3g}" if p in shares else "-" for p in PHASES]
        host = "" if known is None else known.host
        rows.append([str(rank), str(worker), *times, "-" if shards is None else str(shards)])
        rows[-1] += [str(view.losses_by_rank.get(rank, 0)), cut(host or "-", width, is_ascii=True)]
    headings = ["rank", "worker", *(f"{p} ms" for p in PHASES), "shards", "lost", "host"]
    widths = [max(len(r[i]) for r in [headings, *rows]) for i in range(len(columns))]
    order = ["rank", "forward", "backward", "wait", "worker", "shards", "sum", "update", "data", "lost", "host"]
    kept: set[str] = set()
    for name in order:  # what matters most first, as long as there is room
        if sum(widths[columns.index(n)] + 2 for n in {*kept, name}) - 2 <= width:
            kept.add(name)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    chosen = [i for i, name in enumerate(columns) if name in kept]
    for i in chosen:
        table.add_column(headings[i], justify="left" if columns[i] == "host" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in chosen))
    return table


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%H:%M:%S")
