"""Who knows the token comes in; nobody else does, and nobody else is in the way."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psutil
import pytest

from dtrain.comm import door as module
from dtrain.comm.channel import Channel
from dtrain.comm.door import Address, Door, DoorError, authenticate, knock, new_token, recognise
from tests.support import wait_until

TOKEN = new_token()
LOOPBACK = "127.0.0.1"
Visits = queue.SimpleQueue[tuple[socket.socket, dict[str, Any]]]


@pytest.fixture
def visits() -> Visits:
    return queue.SimpleQueue()


@pytest.fixture
def door(visits: Visits) -> Iterator[Door]:
    made = Door(TOKEN, [LOOPBACK], lambda connection, hello: visits.put((connection, hello)))
    yield made
    made.close()


def connect(door: Door) -> socket.socket:
    return socket.create_connection(door.addresses[0], timeout=30)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection; what it says before does not matter."""
    connection.settimeout(30)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def test_who_knows_the_token_comes_in(door: Door, visits: Visits) -> None:
    channel = knock(door.addresses, TOKEN, {"rank": 3})
    connection, hello = visits.get(timeout=30)
    assert hello == {"rank": 3}
    other = Channel(connection)
    channel.send({"type": "joined"})
    assert other.receive(30) == {"type": "joined"}
    other.send({"type": "welcome"})
    assert channel.receive(30) == {"type": "welcome"}
    assert channel.local_address == LOOPBACK
    channel.close()
    other.close()


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(bytes.fromhex(t.decode())) for t in tokens} == {32}


def test_the_token_is_not_sent() -> None:
    """Neither side says it, nor twice the same."""
    said: list[bytes] = []
    for _ in range(2):
        here, there = socket.socketpair()
        with Tapped(here) as tapped, closing(there):
            opener = threading.Thread(target=recognise, args=(there, TOKEN, b"worker"))
            opener.start()
            authenticate(tapped, TOKEN, b"worker", b"{}")  # type: ignore[arg-type]
            opener.join(30)
            said += [tapped.sent, tapped.received]
    assert all(TOKEN not in s and bytes.fromhex(TOKEN.decode()) not in s for s in said)
    pieces = [s[i : i + 32] for s in said for i in (0, 32)]
    assert len(set(pieces)) == len(pieces)


class Tapped:
    """A socket that keeps what went through it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.sent = self.received = b""

    def __enter__(self) -> Tapped:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def settimeout(self, seconds: float) -> None:
        self._connection.settimeout(seconds)

    def sendall(self, data: bytes) -> None:
        self.sent += data
        self._connection.sendall(data)

    def recv(self, count: int) -> bytes:
        data = self._connection.recv(count)
        self.received += data
        return data


@pytest.mark.parametrize(
    ("token", "label"),
    [(new_token(), b"worker"), (b"", b"worker"), (TOKEN, b"link 1"), (TOKEN, b"")],
    ids=["another token", "no token", "another label", "no label"],
)
def test_who_does_not_know_token_and_label_stays_outside(
    door: Door, visits: Visits, token: bytes, label: bytes
) -> None:
    with connect(door) as connection, pytest.raises((DoorError, ConnectionError)):
        authenticate(connection, token, label, b"{}")
    assert knock(door.addresses, TOKEN, {"is": "right"})
    assert visits.get(timeout=30)[1] == {"is": "right"}
    assert visits.empty()


def test_a_knocker_is_told_that_it_was_sent_away(door: Door) -> None:
    address = f"{LOOPBACK}:{door.addresses[0][1]}"
    with pytest.raises(DoorError, match=rf"the coordinator cannot be reached at {address}: .*"):
        knock(door.addresses, b"wrong", {})


def test_a_recorded_visit_opens_nothing(door: Door, visits: Visits) -> None:
    with Tapped(connect(door)) as tapped:
        authenticate(tapped, TOKEN, b"worker", b"{}")  # type: ignore[arg-type]
        visits.get(timeout=30)
    with connect(door) as connection:
        with suppress(ConnectionError):
            connection.sendall(tapped.sent)
        assert is_closed(connection)
    assert visits.empty()


def test_the_doors_own_words_open_nothing(door: Door, visits: Visits) -> None:
    """Its nonce as ours, and its proof of another visit as ours."""
    with connect(door) as first, connect(door) as second:
        first.sendall(first.recv(32) + bytes(32))
        assert is_closed(first)
        nonce = second.recv(32)
        second.sendall(nonce + nonce)
        assert is_closed(second)
    assert visits.empty()


def test_an_echo_is_not_taken_for_the_door() -> None:
    """Who sends everything back does not prove that it knows the token."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def echo() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                while data := connection.recv(4096):
                    connection.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        with pytest.raises(DoorError, match="it does not know the token of this job"):
            knock([listener.getsockname()], TOKEN, {})


def test_silent_visitors_hold_nobody_up(door: Door, visits: Visits) -> None:
    silent = [connect(door) for _ in range(50)]
    channel = knock(door.addresses, TOKEN, {"n": 1})
    assert visits.get(timeout=30)[1] == {"n": 1}
    channel.close()
    for connection in silent:
        connection.close()


def test_a_visitor_who_says_a_byte_now_and_then_is_sent_away(
    door: Door, visits: Visits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.3)
    with connect(door) as connection:
        connection.recv(32)
        stop = threading.Event()

        def drip() -> None:
            with suppress(OSError):
                while not stop.wait(0.05):
                    connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        assert is_closed(connection)
        stop.set()
    assert visits.empty()


def test_a_door_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.2)
    with (
        socket.create_server((LOOPBACK, 0)) as listener,
        pytest.raises(DoorError, match=r"no answer within 0\.2 s"),
    ):
        knock([listener.getsockname()], TOKEN, {})


def knock_with(door: Door, rest: bytes) -> socket.socket:
    """A visitor who knows the token, and then says ``rest`` in the place of length and hello."""
    connection = connect(door)
    own = b"n" * 32
    connection.sendall(own)
    theirs = connection.recv(32)
    connection.sendall(module._proof(TOKEN, b"worker", b"knock", own, theirs) + rest)
    return connection


@pytest.mark.parametrize(
    "rest",
    [(65537).to_bytes(4, "little") + b"x" * 1000, b"\xff\xff\xff\xff", (3).to_bytes(4, "little") + b"{{{"],
    ids=["too long", "4 GB", "no JSON"],
)
def test_a_hello_that_is_none_is_refused(door: Door, visits: Visits, rest: bytes) -> None:
    with knock_with(door, rest) as connection:
        assert is_closed(connection)
    assert visits.empty()


def test_the_longest_hello_is_let_in(door: Door, visits: Visits) -> None:
    hello = json.dumps({"x": "y" * (65536 - 9)}).encode()
    assert len(hello) == 65536
    with knock_with(door, len(hello).to_bytes(4, "little") + hello):
        assert len(visits.get(timeout=30)[1]["x"]) == 65536 - 9


def listening() -> set[Address]:
    return {
        (c.laddr.ip, c.laddr.port) for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN
    }


def test_it_listens_where_it_was_told_and_nowhere_else(visits: Visits) -> None:
    before = listening()
    door = Door(TOKEN, ["127.0.0.1", "127.0.0.2"], lambda *visit: visits.put(visit))
    assert listening() - before == set(door.addresses)
    assert [host for host, _ in door.addresses] == ["127.0.0.1", "127.0.0.2"]
    for address in door.addresses:
        knock([address], TOKEN, {}).close()
        visits.get(timeout=30)[0].close()
    door.close()
    assert listening() == before


def test_a_closed_door_gives_its_ports_and_threads_back(visits: Visits) -> None:
    threads = set(threading.enumerate())
    door = Door(TOKEN, [LOOPBACK], lambda *visit: visits.put(visit))
    door.close()
    door.close()  # twice is once
    with pytest.raises(DoorError, match="Connection refused"):
        knock(door.addresses, TOKEN, {})
    socket.create_server(door.addresses[0]).close()
    wait_until(lambda: set(threading.enumerate()) <= threads)


def test_a_visitor_takes_the_first_address_that_answers(door: Door, visits: Visits) -> None:
    with socket.create_server((LOOPBACK, 0)) as closed:
        nobody = closed.getsockname()
    channel = knock([nobody, *door.addresses], TOKEN, {"n": 2})
    assert visits.get(timeout=30)[1] == {"n": 2}
    channel.close()
