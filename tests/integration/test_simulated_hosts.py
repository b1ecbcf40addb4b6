"""Several hosts on this machine: that they are apart, that they fail as told, and that nothing of them is left.

Needs root. ``DTRAIN_NO_ROOT=1`` leaves these tests out where there is none.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.simulate import Hosts, Proxy, SimulationError, clean
from cluster.simulate.hosts import PREFIX
from tests.support import ROOT, wait_until

pytestmark = [
    pytest.mark.skipif(os.environ.get("DTRAIN_NO_ROOT") == "1", reason="DTRAIN_NO_ROOT=1 asks for it"),
    pytest.mark.usefixtures("root"),
]

ECHO = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listening", flush=True)
    line, _ = server.accept()
    while data := line.recv(65536):
        line.sendall(data)
"""
"""Answers one connection with what it says."""

TALK = """
import socket, sys
line = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
line.settimeout(None)
print("connected", flush=True)
for word in sys.stdin:
    try:
        line.sendall(word.encode())
        print(line.recv(65536).decode().strip() or "closed", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""
"""Sends each line of its standard input, and prints the answer."""

ENDS = ("closed", "ConnectionResetError", "BrokenPipeError")
"""How `TALK` says that the connection has ended."""


def answer(host: Any, *command: object, **options: Any) -> str:
    """What a command prints in a host; it has to succeed."""
    return str(host.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60, **options).stdout).strip()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


class Conversation:
    """One connection from a host to an address, over which words are echoed."""

    def __init__(self, host: Any, address: str, port: int) -> None:
        command = [sys.executable, "-c", TALK, address, port]
        self.process = host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert said(self.process) == "connected"

    def say(self, word: str) -> None:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def ask(self, word: str) -> str:
        self.say(word)
        return said(self.process)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def echo(hosts: Hosts) -> Iterator[subprocess.Popen[str]]:
    """An echo server at port 7000 of host 1, for one connection."""
    with hosts[1].popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as process:
        assert said(process) == "listening"
        yield process
        process.kill()


# --- hosts are apart -------------------------------------------------------------------------------------------------


def test_hosts_have_their_own_name_address_processes_and_shared_memory(hosts: Hosts) -> None:
    look = "hostname; getent hosts $0 | cut -d' ' -f1; echo $$; ls /dev/shm | wc -l; touch /dev/shm/mine"
    for host in hosts:
        name, address, pid, entries = answer(host, "sh", "-c", look, host.name).split()
        assert (name, address) == (host.name, host.address)
        assert int(pid) < 1000  # its own numbers
        assert entries == "0"
    assert not Path("/dev/shm/mine").exists()
    assert len({os.readlink(f"/proc/{host.pid}/ns/net") for host in hosts} | {os.readlink("/proc/self/ns/net")}) == 4
    assert len({answer(host, "sh", "-c", "echo $TMPDIR") for host in hosts}) == 3


def test_hosts_have_no_way_out(hosts: Hosts) -> None:
    routes = answer(hosts[0], "ip", "route")
    assert routes.startswith("10.77.0.0/24 dev eth0")
    assert len(routes.splitlines()) == 1
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    done = hosts[0].run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Network is unreachable" in done.stderr


def test_two_sets_of_hosts_never_meet(hosts: Hosts, echo: subprocess.Popen[str]) -> None:
    with Hosts(3) as others:  # the same addresses
        code = f"import socket; socket.create_connection(('{hosts[1].address}', 7000), 5)"
        done = others[0].run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert "Connection refused" in done.stderr
    talk = Conversation(hosts[0], hosts[1].address, 7000)
    assert talk.ask("here") == "here"
    talk.close()


def test_nothing_of_the_hosts_is_on_this_machine(hosts: Hosts) -> None:
    assert {name for _, name in socket.if_nameindex()} & {"bridge", "port0", "port1", "port2"} == set()
    assert not [link for link in Path("/run").glob("netns/*") if link.name.startswith("host")]


def test_a_command_is_its_own_process(hosts: Hosts, tmp_path: Path) -> None:
    assert hosts[0].run(["sh", "-c", "exit 7"]).returncode == 7
    assert hosts[0].run(["sh", "-c", "kill -9 $$"]).returncode == -signal.SIGKILL
    done = hosts[0].run(["no-such-program"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (127, "host0: no-such-program: No such file or directory\n")
    assert answer(hosts[0], "pwd", cwd=tmp_path) == str(tmp_path)
    assert answer(hosts[0], "sh", "-c", "cat; echo $WORD", input="in\n", env={**os.environ, "WORD": "x"}) == "in\nx"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_command(hosts: Hosts, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 5' {number.value}; echo ready; while :; do sleep 0.01; done"
    process = hosts[0].popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert said(process) == "ready"
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "caught\n"
    assert process.returncode == 5


def test_killing_the_command_kills_its_process_group(hosts: Hosts) -> None:
    process = hosts[0].popen(["sh", "-c", "sleep 4321 & sleep 4322"])
    wait_until(lambda: "sleep 4322" in answer(hosts[0], "ps", "ax"))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: "sleep 432" not in answer(hosts[0], "ps", "ax"))


# --- lines and failures ----------------------------------------------------------------------------------------------


def test_bandwidth_is_limited_both_ways_and_bytes_are_counted() -> None:
    size, rate = 3_000_000, 40e6
    send = f"import socket, sys; socket.create_connection((sys.argv[1], 7000)).sendall(bytes({size}))"
    take = (
        "import socket, time; server = socket.create_server(('', 7000)); print('listening', flush=True)\n"
        "line, _ = server.accept(); begin = time.monotonic(); n = 0\n"
        "while data := line.recv(65536): n += len(data)\n"
        "print(n, time.monotonic() - begin)"
    )
    with Hosts(2, bandwidth="40mbit") as hosts:
        for sender, receiver in ((0, 1), (1, 0)):
            before = hosts.bytes_sent(sender)
            with hosts[receiver].popen([sys.executable, "-c", take], stdout=subprocess.PIPE, text=True) as taking:
                assert said(taking) == "listening"
                hosts[sender].run([sys.executable, "-c", send, hosts[receiver].address], check=True)
                count, seconds = said(taking).split()
            assert int(count) == size
            assert float(seconds) > 0.85 * size * 8 / rate
            assert size < hosts.bytes_sent(sender) - before < 1.2 * size


def test_a_link_that_is_cut_is_silent_until_it_is_mended(hosts: Hosts, echo: subprocess.Popen[str]) -> None:
    talk = Conversation(hosts[0], hosts[1].address, 7000)
    assert talk.ask("before") == "before"
    hosts.cut(1)
    received = hosts.bytes_sent(1)
    talk.say("during")
    assert talk.process.poll() is None
    connect = f"import socket; socket.create_connection(('{hosts[1].address}', 7000), 0.3)"
    assert hosts[2].run([sys.executable, "-c", connect], stderr=subprocess.DEVNULL).returncode == 1
    assert hosts.bytes_sent(1) == received
    hosts.mend(1)
    assert said(talk.process) == "during"  # TCP sends it again
    talk.close()


def test_a_host_is_killed_with_all_in_it_and_booted_again(hosts: Hosts, echo: subprocess.Popen[str]) -> None:
    talk = Conversation(hosts[0], hosts[1].address, 7000)
    sleeping = hosts[1].popen(["setsid", "sleep", "4323"], stderr=subprocess.DEVNULL)
    hosts.kill(1)
    assert sleeping.wait(60) == 255  # as ssh says it
    assert echo.wait(60) == 255
    assert not hosts[1].is_up
    assert talk.ask("gone") in ENDS
    talk.close()
    with pytest.raises(SimulationError, match="host1 is down"):
        hosts.bytes_sent(1)
    hosts.boot(1)
    assert answer(hosts[1], "hostname") == "host1"
    assert "sleep" not in answer(hosts[1], "ps", "ax")
    done = hosts[0].run(["getent", "hosts", "host1"], stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == [hosts[1].address, "host1"]
    with hosts[1].popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as again:
        assert said(again) == "listening"
        talk = Conversation(hosts[2], hosts[1].address, 7000)
        assert talk.ask("back") == "back"
        talk.close()


# --- the relay -------------------------------------------------------------------------------------------------------


@pytest.fixture
def relayed(hosts: Hosts, echo: subprocess.Popen[str]) -> Iterator[tuple[Proxy, Conversation]]:
    """A relay in host 2, and a conversation of host 0 with the echo in host 1 through it."""
    with Proxy(f"{hosts[1].address}:7000", at=hosts[2]) as proxy:
        talk = Conversation(hosts[0], proxy.address, proxy.port)
        yield proxy, talk
        talk.close()


def test_a_relay_delays_each_way(relayed: tuple[Proxy, Conversation]) -> None:
    proxy, talk = relayed
    assert talk.ask("near") == "near"
    proxy.delay(0.2)
    begin = time.monotonic()
    assert talk.ask("far") == "far"
    assert time.monotonic() - begin >= 0.4


def test_a_relay_limits_the_rate(relayed: tuple[Proxy, Conversation]) -> None:
    proxy, talk = relayed
    proxy.rate(20_000)
    begin = time.monotonic()
    for word in ("x" * 1999, "y"):  # the first takes 0.1 s, each way
        assert talk.ask(word) == word
    assert time.monotonic() - begin >= 0.19


def test_a_relay_stalls_for_a_time_or_until_told(relayed: tuple[Proxy, Conversation]) -> None:
    proxy, talk = relayed
    proxy.stall(0.3)
    begin = time.monotonic()
    assert talk.ask("late") == "late"
    assert time.monotonic() - begin >= 0.29
    proxy.stall()
    talk.say("held")
    proxy.resume()
    assert said(talk.process) == "held"


def test_a_relay_breaks_connections(relayed: tuple[Proxy, Conversation], hosts: Hosts) -> None:
    proxy, talk = relayed
    assert talk.ask("up") == "up"
    proxy.refuse()
    assert talk.ask("down") in ENDS
    connect = [sys.executable, "-c", TALK, proxy.address, proxy.port]
    again = hosts[0].run(connect, input="down\n", capture_output=True, text=True, timeout=60)
    assert "ConnectionResetError" in again.stderr or again.stdout.split()[-1] in ENDS
    proxy.resume()


def test_a_relay_passes_on_the_end_of_a_connection(
    relayed: tuple[Proxy, Conversation], echo: subprocess.Popen[str]
) -> None:
    _, talk = relayed
    assert talk.ask("up") == "up"
    echo.kill()
    wait_until(lambda: talk.ask("down") in ENDS)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_relay_flips_one_bit_of_one_byte(relayed: tuple[Proxy, Conversation], way: str) -> None:
    proxy, talk = relayed
    assert talk.ask("abc") == "abc"
    proxy.flip(way, 5)  # "aaaa\n" pass
    assert talk.ask("aaaa") == "aaaa"
    assert talk.ask("aaaa") == "`aaa"
    assert talk.ask("aaaa") == "aaaa"


def test_a_relay_refuses_what_it_does_not_know_and_addresses_of_others() -> None:
    with Proxy("127.0.0.1:9") as proxy, pytest.raises(ValueError, match="no such command: flip sideways 1"):
        proxy.flip("sideways", 1)
    with pytest.raises(OSError, match="cannot listen"):
        Proxy("192.88.99.1:80")


# --- nothing is left -------------------------------------------------------------------------------------------------


def tool(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.simulate", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def test_the_command_runs_in_host_0_and_knows_the_hosts() -> None:
    script = 'hostname; "$SIMULATE_AGENT" -x host2 hostname; cat "$SIMULATE_HOSTFILE_OPENMPI"; exit 9'
    process = tool("--hosts", 3, "--slots", 2, "--subnet", "192.168.55.0/28", "--", "sh", "-c", script)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (9, "")
    assert out.splitlines() == ["host0", "host2", "host0 slots=2", "host1 slots=2", "host2 slots=2"]


def is_running(pid: int) -> bool:
    """Whether a process is there and not just waiting to be buried by its new parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_the_tool(number: signal.Signals) -> None:
    links = socket.if_nameindex()
    process = tool("--", "sh", "-c", 'setsid sleep 4324 & echo "$TMPDIR"; wait')
    directory = Path(said(process)).parent
    assert directory.name.startswith(PREFIX)
    mine = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert any("sleep 4324" in " ".join(psutil.Process(pid).cmdline()) for pid in mine)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not any(is_running(pid) for pid in mine))
    wait_until(lambda: not directory.exists())
    assert socket.if_nameindex() == links


def test_clean_removes_what_the_dead_left_and_nothing_else(hosts: Hosts) -> None:
    left = Path(tempfile.mkdtemp(prefix=PREFIX))
    (left / "lock").touch()
    (left / "hostfile.mpich").touch()
    assert left in clean()
    assert not left.exists()
    assert answer(hosts[0], "hostname") == "host0"
    assert tool("clean").communicate(timeout=60) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bandwidth", "fast"], "bandwidth: expected a number with kbit, mbit or gbit, such as 1gbit, got 'fast'"),
        (["--subnet", "8.8.8.0/24"], "subnet: 8.8.8.0/24 is not a private range with room for 2 hosts"),
        (
            ["--subnet", "10.0.0.0/30", "--hosts", "3"],
            "subnet: 10.0.0.0/30 is not a private range with room for 3 hosts",
        ),
        (["--hosts", "0"], "expected at least 1 host and 1 slot, got 0 and 1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[object], line: str) -> None:
    process = tool(*arguments, "--", "true")
    assert process.communicate(timeout=60) == ("", f"simulate: {line}\n")
    assert process.returncode == 2


def test_a_missing_tool_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ip").symlink_to("/bin/true")
    process = tool("--", "true", env={**os.environ, "PATH": str(tmp_path)})
    assert process.communicate(timeout=60)[1] == (
        "simulate: the program tc is not installed; on Debian: apt-get install iproute2\n"
    )
    assert process.returncode == 2


def test_without_root_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SimulationError, match="simulated hosts need root"):
        Hosts(2)
