"""Who took part in a run and when, from its events."""

from dtrain.monitor.timeline import timeline


def event(second, kind, **keys):
    return {"time": f"2026-11-23T20:00:{second:02}.500Z", "event": kind, **keys}


def test_members_have_bars_that_end_where_they_are_lost():
    events = [
        event(0, "started", steps=10, step=0),
        event(1, "worker_joined", worker=0, text="worker 0 joined"),
        event(1, "generation", generation=1, members=[0, 1], restarts=0),
        event(4, "worker_lost", worker=1, text="worker 1 died"),
        event(4, "generation", generation=2, members=[0], restarts=1),
        event(6, "generation", generation=3, members=[0, 2], restarts=1),
        event(9, "checkpoint", step=5),
    ]
    found = timeline(events, False)
    start = found["events"][0]["time"]
    bars = [(bar["worker"], bar["start"] - start, bar["end"] - start) for bar in found["bars"]]
    assert bars == [(0, 1.0, 9.0), (1, 1.0, 4.0), (2, 6.0, 9.0)]
    assert [(m["worker"], m["what"], m["time"] - start) for m in found["marks"]] == [
        (0, "joined", 1.0),
        (1, "lost", 4.0),
    ]
    assert found["checkpoints"] == [{"time": start + 9.0, "step": 5}]
    assert [g["members"] for g in found["generations"]] == [[0, 1], [0], [0, 2]]
    assert found["events"][-2]["text"] == "generation 3: workers 0, 2"
    assert [bar["end"] for bar in timeline(events, True)["bars"]] == [None, start + 4.0, None]


def test_a_worker_that_is_no_member_any_more_has_left():
    events = [event(2, "generation", generation=1, members=[0, 1]), event(5, "generation", generation=2, members=[0])]
    bars = timeline([*events, event(9, "checkpoint", step=5)], False)["bars"]
    assert [(bar["worker"], bar["end"] - bar["start"]) for bar in bars] == [(0, 7.0), (1, 3.0)]


def test_a_process_that_starts_again_ends_the_bars_of_the_one_before():
    first = [event(0, "started", steps=9, step=0), event(1, "generation", generation=1, members=[0], restarts=0)]
    again = [event(5, "started", steps=9, step=3), event(6, "generation", generation=1, members=[0], restarts=0)]
    bars = timeline([*first, *again, event(8, "checkpoint", step=9)], False)["bars"]
    start = bars[0]["start"] - 1
    assert [(bar["start"] - start, bar["end"] - start) for bar in bars] == [(1.0, 5.0), (6.0, 8.0)]


def test_a_damaged_event_does_no_harm():
    assert timeline([{}, {"time": "no time", "event": "worker_lost", "worker": "x"}], False)["bars"] == []
