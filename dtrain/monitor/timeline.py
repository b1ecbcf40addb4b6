"""Who took part in a run and when, from the lines of ``events.jsonl``: what the page and the report draw."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

_MARKED = {
    "worker_joined": "joined",
    "worker_lost": "lost",
    "worker_silent": "lost",
    "worker_failed": "lost",
    "worker_dismissed": "left",
}
_NOTABLE = 300  # events that are handed out, the newest


def timeline(events: Iterable[Mapping[str, Any]], is_running: bool) -> dict[str, Any]:
    """Return `bars`, `marks`, `generations`, `checkpoints` and the newest `events`. Times are Unix time in seconds.

    A bar is the time that a worker (`worker`) was a member without a break, `start` to `end`; a mark is a `time` at
    which a `worker` was `what`: joined, lost or left; a generation has `time`, `generation` and `members`. In a run
    that lasts the bars of its members have the `end` None.
    """
    bars: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    generations: list[dict[str, Any]] = []
    checkpoints: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    since: dict[int, float] = {}
    time = 0.0

    def leave(workers: Iterable[int], lasts: bool = False) -> None:
        for worker in list(workers):
            bars.append({"worker": worker, "start": since.pop(worker), "end": None if lasts else time})

    for event in events:
        kind = event.get("event")
        time = unix_time(event.get("time"), time)
        if kind == "started":
            leave(since)
        if kind in _MARKED and isinstance(event.get("worker"), int):
            marks.append({"time": time, "worker": event["worker"], "what": _MARKED[kind]})
            if _MARKED[kind] != "joined":
                leave({event["worker"]} & set(since))
        if kind == "generation":
            members = list(event.get("members", ()))
            leave(set(since) - set(members))
            since |= {worker: time for worker in members if worker not in since}
            generations.append({"time": time, "generation": event.get("generation"), "members": members})
        if kind == "checkpoint":
            checkpoints.append({"time": time, "step": event.get("step")})
        told.append({"time": time, "event": kind, "text": str(event.get("text") or described(event))})
    leave(since, is_running)
    return {
        "bars": sorted(bars, key=lambda bar: (bar["worker"], bar["start"]))[-2000:],
        "marks": marks[-1000:],
        "generations": generations[-500:],
        "checkpoints": checkpoints[-500:],
        "events": told[-_NOTABLE:],
    }


def unix_time(text: Any, otherwise: float) -> float:
    """The Unix time of an event's ISO text; ``otherwise`` if it is none."""
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return otherwise


def described(event: Mapping[str, Any]) -> str:
    """What an event without a text of its own says, in one line."""
    kind = event.get("event")
    if kind == "started":
        return f"started at step {event.get('step')} of {event.get('steps')}"
    if kind == "generation":
        members = ", ".join(map(str, event.get("members", ())))
        return f"generation {event.get('generation')}: workers {members}"
    if kind == "checkpoint":
        return f"checkpoint of step {event.get('step')}"
    return ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("time", "event"))
