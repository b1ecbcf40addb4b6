"""What the dashboard's summary of nodes says of free CPUs."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.jobs import ray_client
from dtrain.jobs.ray_client import cpus


class Answer:
    def __init__(self, status_code: int, data: dict[str, Any]) -> None:
        self.status_code, self._data = status_code, data

    def json(self) -> dict[str, Any]:
        return {"data": self._data}


class Client:
    """A dashboard that gives these answers, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self._answers, self.asked = list(answers), 0

    def _do_request(self, method: str, endpoint: str) -> Answer:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def nodes(states: dict[str, str], resources: dict[str, str]) -> Answer:
    summary = [{"raylet": {"nodeId": node, "state": state}} for node, state in states.items()]
    return Answer(200, {"summary": summary, "nodeLogicalResources": resources})


def test_the_cpus_of_living_nodes_are_added() -> None:
    states = {"a": "ALIVE", "b": "ALIVE", "c": "DEAD"}
    said = {"a": "0.0/2.0 CPU\n0B/1GiB memory", "b": "1.0/4.0 CPU", "c": "0.0/8.0 CPU"}
    assert cpus(Client(nodes(states, said))) == (5, 6)


def test_a_node_that_has_just_joined_is_waited_for() -> None:
    states = {"a": "ALIVE", "b": "ALIVE"}
    early, later = nodes(states, {"a": "0.0/2.0 CPU"}), nodes(states, {"a": "0.0/2.0 CPU", "b": "0.0/3.0 CPU"})
    client = Client(early, early, later)
    assert cpus(client) == (5, 5)
    assert client.asked == 3


def test_a_dashboard_that_does_not_say_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_client, "_NODE_SECONDS", 0.0)
    assert cpus(Client(nodes({"a": "ALIVE"}, {}))) is None
    assert cpus(Client(Answer(500, {}))) is None
