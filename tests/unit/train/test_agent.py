"""The line of a worker on another host: what concerns the memory is done at once, the rest waits for the worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from dtrain.comm.channel import Channel, ChannelClosed, Message, channel_pair
from dtrain.comm.memory import ARRIVED, BEATS, BEGUN, GRANTED, HALT, WAITS, RunMemory
from dtrain.train.agent import Agent
from dtrain.train.host import Host
from tests.support import wait_until
from tests.unit.train.cluster import coefficients, memory_of, program

SECONDS = 30.0


class Line:
    """The coordinator's end of a line, and the agent at the other."""

    def __init__(self, memory: RunMemory | None = None) -> None:
        self.program = program()
        self.memory = memory_of(self.program) if memory is None else memory
        here, there = channel_pair()
        self.there = there
        self.passed: list[Message] = []  # reports that came before what was waited for
        self.channel, self.agent = here, Agent(Channel(there))
        self.agent.attend(Host(self.program, self.memory))

    def ask(self, message: Message, kind: str) -> Message:
        self.channel.send(message)
        return self.hear(kind)

    def hear(self, kind: str) -> Message:
        deadline = time.monotonic() + SECONDS
        for message in self.passed:
            if message["type"] == kind:
                self.passed.remove(message)
                return message
        while time.monotonic() < deadline:
            found = self.channel.receive(SECONDS)
            if found is not None and found["type"] == kind:
                return found
            if found is not None and found["type"] == "progress":
                self.passed.append(found)
        raise AssertionError(f"no {kind} in {SECONDS} s")

    def is_quiet(self) -> bool:
        """Whether it says no more than that it is alive."""
        deadline = time.monotonic() + 0.2
        while (left := deadline - time.monotonic()) > 0:
            message = self.channel.receive(left)
            if message is not None and message["type"] != "alive":
                return False
        return True

    def report(self, ranks: int = 1) -> Message:
        return self.ask({"type": "host_report", "ranks": ranks}, "host_reported")

    def begin(self, generation: int = 1, step: int = 0, ranks: int = 1) -> None:
        self.channel.send({"type": "host_begin", "generation": generation, "step": step, "ranks": ranks})
        self.report()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.channel.close()
    wait_until(lambda: is_closed(made.agent))
    made.agent.close()


def is_closed(agent: Agent) -> bool:
    try:
        return agent.receive(0) is None and False
    except ChannelClosed:
        return True


def test_what_concerns_the_memory_is_done_while_the_worker_is_busy(line: Line) -> None:
    """The worker never receives; it computes."""
    line.channel.send({"type": "host_grant", "first": 4, "coefficients": coefficients(line.program, 4, 7)})
    line.begin(generation=5, step=4, ranks=3)
    assert line.memory.header[[BEGUN, GRANTED, HALT]].tolist() == [5, 7, 4]
    assert line.memory.arrived[:3, ARRIVED].tolist() == [16, 16, 16]
    line.channel.send({"type": "host_halt", "generation": 5})
    line.report()
    assert line.memory.header[HALT] == 5


def test_the_state_comes_in_raw_behind_its_message(line: Line) -> None:
    random = np.random.default_rng(2)
    parameters = random.standard_normal(line.memory.parameters.shape).astype(np.float32)
    state = random.standard_normal(line.memory.state.shape).astype(np.float32)
    line.channel.send({"type": "go"})
    line.channel.send({"type": "host_state"})
    for array in (parameters, state):
        line.channel.send_array(array, SECONDS)
    line.channel.send({"type": "evaluate"})
    line.begin(step=9)
    assert line.memory.parameters.tobytes() == parameters.tobytes()
    assert line.memory.state.tobytes() == state.tobytes()
    assert [line.agent.receive(SECONDS), line.agent.receive(SECONDS)] == [{"type": "go"}, {"type": "evaluate"}]


def test_all_else_is_handed_on_in_its_order(line: Line) -> None:
    for number in range(5):
        line.channel.send({"type": "go", "n": number})
        line.channel.send({"type": "host_halt", "generation": 0})
    assert [line.agent.receive(SECONDS) for _ in range(5)] == [{"type": "go", "n": n} for n in range(5)]
    assert line.agent.receive(0) is None
    before = time.monotonic()
    assert line.agent.receive(0.05) is None
    assert time.monotonic() - before >= 0.05


def test_before_it_attends_the_worker_reads_the_line_itself() -> None:
    here, there = channel_pair()
    agent = Agent(Channel(there))
    here.send({"type": "welcome"})
    assert agent.receive(SECONDS) == {"type": "welcome"}
    here.send_array(np.arange(5.0), SECONDS)
    array = np.empty(5)
    agent.receive_array(array)
    assert array.tolist() == [0, 1, 2, 3, 4]
    here.close()
    with pytest.raises(ChannelClosed):
        agent.receive(SECONDS)
    agent.close()


def test_it_reports_how_far_the_ranks_are_when_that_has_changed(line: Line) -> None:
    line.begin(generation=2, step=3, ranks=2)
    first = line.hear("progress")
    assert first["generation"] == 2
    assert first["rows"] == [[12, 0, 0], [12, 0, 0]]
    assert line.is_quiet()
    line.memory.phases[3, 1, 0] = 0.25
    line.memory.arrived[0, [ARRIVED, BEATS, WAITS]] = 15, 7, 2
    line.memory.arrived[1, ARRIVED] = 15
    changed = line.hear("progress")
    while changed["rows"] != [[15, 7, 2], [15, 0, 0]]:
        changed = line.hear("progress")
    assert line.is_quiet()


def test_the_seconds_that_it_reports_are_of_each_committed_step_once(line: Line) -> None:
    line.begin(generation=1, step=3, ranks=2)
    line.memory.phases[3:6, :2, 1] = (0.5, 0.75), (1.0, 2.0), (4.0, 8.0)
    line.memory.arrived[:2, ARRIVED] = 20, 21  # both are in step 5
    messages = [line.hear("progress")]
    while messages[-1]["rows"][1][0] != 21:
        messages.append(line.hear("progress"))
    line.memory.arrived[:2, ARRIVED] = 24, 24
    while messages[-1]["rows"][1][0] != 24:
        messages.append(line.hear("progress"))
    assert sum(m["steps"] for m in messages) == 3
    assert [sum(m["phases"][rank][1] for m in messages) for rank in (0, 1)] == [5.5, 10.75]


def test_now_and_then_it_tells_how_much_memory_the_worker_has(line: Line) -> None:
    assert line.hear("alive")["resident"] > 1_000_000


def test_it_looks_where_another_worker_of_its_host_is(line: Line) -> None:
    code = (
        "import time\nfrom dtrain.train.stacks import answer_when_asked\nanswer_when_asked()\nprint()\ntime.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        answer = line.ask({"type": "host_stack", "worker": 3, "pid": other.pid}, "host_stack")
        other.kill()
    assert answer["worker"] == 3
    assert answer["found"]["line"] in ("<string>:4 in <module>", "<string>:5 in <module>")
    assert "in <module>" in answer["found"]["stack"]


def test_a_worker_that_is_idle_says_why_first(line: Line) -> None:
    """The coordinator, woken by the word, then knows that the steps are done."""
    line.begin(generation=1, step=0, ranks=1)
    line.hear("progress")
    line.memory.arrived[0, ARRIVED] = 7
    line.agent.send({"type": "idle"})
    assert [line.hear("progress")["rows"][0][0], line.hear("idle")["type"]] == [7, "idle"]


def test_before_a_generation_it_says_no_more_than_that_it_is_alive(line: Line) -> None:
    assert line.is_quiet()
    line.agent.send({"type": "joined"})
    line.hear("joined")


def test_it_says_again_and_again_that_it_is_alive(line: Line) -> None:
    """Whether it is asked anything or not, and however busy its worker is."""
    for _ in range(3):
        line.hear("alive")


@pytest.mark.parametrize("garbled", [False, True])
def test_the_end_of_the_line_is_the_workers_end_and_not_its_neighbours(garbled: bool) -> None:
    """A worker that is let go leaves the memory to the others of its host, who go on."""
    first = Line()
    second = Line(first.memory)
    second.begin(generation=3, step=1)
    if garbled:
        first.channel._socket.sendall(b"no message\n")
    else:
        first.channel.close()
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            first.agent.receive(SECONDS)
    assert first.memory.header[HALT] == 2
    assert second.report()["begun"] == 3
    first.channel.close()
    second.channel.close()


def test_messages_before_the_end_of_the_line_are_read_first() -> None:
    line = Line()
    line.channel.send({"type": "stop"})
    line.channel.close()
    assert line.agent.receive(SECONDS) == {"type": "stop"}
    with pytest.raises(ChannelClosed):
        line.agent.receive(SECONDS)


def test_it_ends_a_process_and_answers_when_it_is_gone(line: Line) -> None:
    """Nothing that is told the memory afterwards can be written over by it."""
    process = subprocess.Popen(["sleep", "600"])
    line.channel.send({"type": "host_kill", "pid": process.pid})
    assert line.hear("host_killed") == {"type": "host_killed", "pid": process.pid}
    assert process.poll() == -9
    line.channel.send({"type": "host_kill", "pid": process.pid})  # it is gone already
    assert line.hear("host_killed") == {"type": "host_killed", "pid": process.pid}


def test_a_stopped_process_is_ended_too(line: Line) -> None:
    process = subprocess.Popen(["sh", "-c", "kill -STOP $$"])
    wait_until(lambda: " T" in f" {open(f'/proc/{process.pid}/stat').read().split()[2]}")  # noqa: SIM115
    line.channel.send({"type": "host_kill", "pid": process.pid})
    line.report()
    assert process.poll() == -9


def test_it_mends_and_says_how_far_it_came(line: Line) -> None:
    line.channel.send({"type": "host_grant", "first": 0, "coefficients": coefficients(line.program, 0, 2)})
    line.begin(generation=1, step=0, ranks=2)
    assert line.report(2) == {"type": "host_reported", "begun": 1, "committed": 0, "is_whole": False, "done": []}
    line.memory.shard_done[[1, 3]] = 1
    line.memory.arrived[:2, ARRIVED] = 2
    assert line.report(2) == {"type": "host_reported", "begun": 1, "committed": 0, "is_whole": True, "done": [1, 3]}
    assert line.ask({"type": "host_mend", "ranks": 2}, "host_mended")["committed"] == 1
    assert line.report(2)["committed"] == 1
