"""What comes over a line is what was sent, or the line is lost, with the host and the reason."""

from __future__ import annotations

import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm import links as module
from dtrain.comm.barrier import Halted
from dtrain.comm.links import Kind, LinkLost, Meeting, TcpLinks, checksum
from tests.support import wait_until
from tests.unit.comm.hosts import TOKEN, in_threads, meet

GENERATION = 7
HOST = 4  # what the other end is called
LOOPBACK = "127.0.0.1"
Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    with socket.create_server((LOOPBACK, 0)) as listener:
        here = socket.create_connection(listener.getsockname(), timeout=30)
        there, _ = listener.accept()
    there.settimeout(30)
    return here, there


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = tcp_pair()
    yield made
    for connection in made:
        connection.close()


def words(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def frame(kind: Kind, content: np.ndarray, step: int = 0, generation: int = GENERATION) -> bytes:
    """The bytes of a frame as a host sends it."""
    here, there = tcp_pair()
    links = TcpLinks(generation, {HOST: here})
    links.begin(step)
    links.send(HOST, kind, content)
    count = links.bytes_sent
    data = bytearray()
    while not links.is_sent() or len(data) < count:
        links.progress(step, 0.0)
        data += there.recv(1 << 20)
    here.close()
    there.close()
    return bytes(data)


def receive(links: TcpLinks, count: int, step: int = 0) -> list[tuple[int, Kind]]:
    """The next ``count`` arrivals."""
    found: list[tuple[int, Kind]] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        found += links.progress(step, 0.05)
    return found


# --- what arrives ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.sampled_from([0, 1, 7, 8, 100, 65_536, 300_001])), max_size=8),
    st.lists(st.integers(1, 100) | st.integers(1, 70_000), min_size=1, max_size=50),
    st.integers(0, 2**32),
)
def test_frames_arrive_whole_however_the_network_cuts_them(
    frames: list[tuple[Kind, int]], cuts: list[int], seed: int
) -> None:
    contents = [words(size, seed + i) for i, (_, size) in enumerate(frames)]
    stream = b"".join(frame(kind, content) for (kind, _), content in zip(frames, contents, strict=True))
    here, there = tcp_pair()
    links = TcpLinks(GENERATION, {HOST: here})
    places = [np.zeros(size, np.uint8) for _, size in frames]
    for (kind, _), place in zip(frames, places, strict=True):
        links.receive(HOST, kind, place)
    found: list[tuple[int, Kind]] = []
    there.setblocking(False)
    pieces = iter(cuts)
    piece = next(pieces)
    while stream:
        with suppress(BlockingIOError):
            stream = stream[there.send(stream[:piece]) :]
            piece = next(pieces, 100_000)
        found += links.progress(0, 0.0)
    found += receive(links, len(frames) - len(found))
    assert found == [(HOST, kind) for kind, _ in frames]
    assert [p.tobytes() for p in places] == [c.tobytes() for c in contents]
    here.close()
    there.close()


def test_a_frame_that_is_early_waits_until_it_is_asked_for(pair: Pair) -> None:
    """The other host is in the next step already, or has added a chunk that is not awaited yet."""
    here, there = pair
    links = TcpLinks(GENERATION, {HOST: here})
    now, later = words(1000, 1), words(1000, 2)
    place = np.zeros(1000, np.uint8)
    there.sendall(frame(Kind.PARTIAL, now, step=5) + frame(Kind.PARTIAL, later, step=6))
    links.receive(HOST, Kind.TOTAL, np.zeros(8, np.uint8))
    assert links.progress(5, 0.05) == []
    links.receive(HOST, Kind.PARTIAL, place)
    links.receive(HOST, Kind.PARTIAL, place)
    assert receive(links, 1, step=5) == [(HOST, Kind.PARTIAL)]
    assert place.tobytes() == now.tobytes()
    assert links.progress(5, 0.05) == []
    assert receive(links, 1, step=6) == [(HOST, Kind.PARTIAL)]
    assert place.tobytes() == later.tobytes()


def test_hosts_that_all_send_first_do_not_block_each_other() -> None:
    """More than the network holds in both directions."""
    lines = meet(2)
    sent = [words(20_000_000, host) for host in range(2)]

    def body(host: int) -> None:
        links, peers = lines[host], [h for h in range(2) if h != host]
        places = {peer: np.zeros(20_000_000, np.uint8) for peer in peers}
        links.begin(0)
        for peer in peers:
            links.receive(peer, Kind.TOTAL, places[peer])
            links.send(peer, Kind.TOTAL, sent[host])
        found: list[tuple[int, Kind]] = []
        while len(found) < 1 or not links.is_sent():
            found += links.progress(0, 0.05)
        for peer in peers:
            np.testing.assert_array_equal(places[peer], sent[peer])

    in_threads(2, body)
    for links in lines:
        links.close()


def test_a_wait_for_nothing_lasts_as_long_as_it_may(pair: Pair) -> None:
    links = TcpLinks(GENERATION, {HOST: pair[0]})
    links.receive(HOST, Kind.DONE, np.empty(0, np.uint8))
    before = time.monotonic()
    assert links.progress(0, 0.1) == []
    assert 0.1 <= time.monotonic() - before < 10
    assert links.is_sent()


# --- what is wrong ---------------------------------------------------------------------------------------------------


def lost(pair: Pair, data: bytes, reason: str, step: int = 0, size: int = 1000) -> None:
    """What arrives as ``data`` where a PARTIAL frame is expected loses the line to the host."""
    here, there = pair
    links = TcpLinks(GENERATION, {HOST: here})
    links.receive(HOST, Kind.PARTIAL, np.zeros(size, np.uint8))
    there.sendall(data)
    with pytest.raises(LinkLost, match=f"the line to host {HOST}: {reason}") as caught:
        receive(links, 1, step)
    assert caught.value.host == HOST
    links.close()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("at", [0, 1, 8 * 500 + 3, 8 * 996, 8 * 999 + 7])
def test_a_damaged_content_is_never_added(pair: Pair, at: int) -> None:
    data = frame(Kind.PARTIAL, words(1000), step=3)
    head = len(data) - 1000
    lost(pair, flipped(data, 8 * head + at), "a PARTIAL frame of step 3 was damaged on its way", step=3)


@pytest.mark.parametrize("bit", range(0, 36 * 8, 23))
def test_a_damaged_head_is_never_believed(pair: Pair, bit: int) -> None:
    data = frame(Kind.PARTIAL, words(1000))
    lost(pair, flipped(data, bit), "a frame's head was damaged on its way")


def test_a_frame_of_an_unknown_kind(pair: Pair) -> None:
    head = struct.pack("<4sIQHHIQ", b"dtrn", GENERATION, 0, 99, 0, 0, 0)
    lost(pair, head + struct.pack("<I", zlib.crc32(head)), "a frame's head was damaged")


@pytest.mark.parametrize("size", [0, 999, 1001, 4000])
def test_a_frame_of_another_size_is_not_put_anywhere(pair: Pair, size: int) -> None:
    """The hosts do not agree on the layout."""
    data = frame(Kind.PARTIAL, words(size))
    lost(pair, data, f"a PARTIAL frame of {size} bytes where 1000 are expected")


@pytest.mark.parametrize("generation", [GENERATION - 1, GENERATION + 1])
def test_a_frame_of_another_generation(pair: Pair, generation: int) -> None:
    data = frame(Kind.PARTIAL, words(1000), step=9, generation=generation)
    lost(pair, data, f"a frame of generation {generation}, step 9 in step 9", step=9)


def test_a_frame_of_a_step_that_is_over(pair: Pair) -> None:
    data = frame(Kind.PARTIAL, words(1000), step=8)
    lost(pair, data, f"a frame of generation {GENERATION}, step 8 in step 9", step=9)


@pytest.mark.parametrize("count", [0, 10, 36, 500])
def test_a_peer_that_goes_away_in_the_middle_of_a_frame(pair: Pair, count: int) -> None:
    here, there = pair
    links = TcpLinks(GENERATION, {HOST: here})
    links.receive(HOST, Kind.PARTIAL, np.zeros(1000, np.uint8))
    there.sendall(frame(Kind.PARTIAL, words(1000))[:count])
    assert links.progress(0, 0.05) == []
    there.close()
    with pytest.raises(LinkLost, match=f"the line to host {HOST}: the other end is gone"):
        receive(links, 1)


def test_what_was_sent_before_the_end_still_arrives(pair: Pair) -> None:
    """A host may be the first to leave the last step."""
    here, there = pair
    links = TcpLinks(GENERATION, {HOST: here})
    place = np.zeros(1000, np.uint8)
    links.receive(HOST, Kind.PARTIAL, place)
    there.sendall(frame(Kind.PARTIAL, words(1000)))
    there.close()
    assert receive(links, 1) == [(HOST, Kind.PARTIAL)]
    assert place.tobytes() == words(1000).tobytes()
    assert links.progress(0, 0.05) == []  # nothing more is wanted, so nobody is missed


def test_sending_to_who_is_gone(pair: Pair) -> None:
    here, there = pair
    links = TcpLinks(GENERATION, {HOST: here})
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    there.close()  # by a reset

    def send() -> None:
        for _ in range(100):
            links.send(HOST, Kind.TOTAL, words(1000))
            links.progress(0, 0.01)

    with pytest.raises(LinkLost, match=f"the line to host {HOST}: (Connection reset by peer|Broken pipe)"):
        send()


def test_a_peer_that_does_not_read_is_waited_for(pair: Pair) -> None:
    """It is the coordinator that tells a slow host from a dead one."""
    links = TcpLinks(GENERATION, {HOST: pair[0]})
    content = words(30_000_000)
    links.send(HOST, Kind.TOTAL, content)
    for _ in range(20):
        links.progress(0, 0.01)
    assert not links.is_sent()
    received = bytearray()
    while not links.is_sent() or len(received) < links.bytes_sent:
        links.progress(0, 0.0)
        received += pair[1].recv(1 << 20)
    assert received[-30_000_000:] == content.tobytes()


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 319))
def test_a_flipped_bit_shows_in_the_checksum(content: bytes, bit: int) -> None:
    assert checksum(memoryview(content)) == checksum(memoryview(bytes(content)))
    if bit < 8 * len(content):
        assert checksum(memoryview(flipped(content, bit))) != checksum(memoryview(content))
    assert checksum(memoryview(content + b"\0")) != checksum(memoryview(content))


# --- meetings --------------------------------------------------------------------------------------------------------


def nothing() -> None:
    return


@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_hosts_meet_and_know_each_other(hosts: int) -> None:
    lines = meet(hosts)

    def body(host: int) -> None:
        peers = [h for h in range(hosts) if h != host]
        places = {peer: np.zeros(2, np.uint8) for peer in peers}
        lines[host].begin(0)
        for peer in peers:
            lines[host].receive(peer, Kind.FIGURES, places[peer])
            lines[host].send(peer, Kind.FIGURES, np.array([host, peer], np.uint8))
        found = receive(lines[host], len(peers))
        assert sorted(found) == [(peer, Kind.FIGURES) for peer in peers]
        assert {peer: place.tolist() for peer, place in places.items()} == {peer: [peer, host] for peer in peers}

    in_threads(hosts, body)
    for links in lines:
        links.close()


def both(
    first: Callable[[Meeting], None],
    second: Callable[[Meeting], None],
    tokens: tuple[bytes, bytes] = (TOKEN, TOKEN),
    generations: tuple[int, int] = (GENERATION, GENERATION),
) -> list[BaseException | None]:
    """Let hosts 0 and 1 do something with their meetings; return how each ended."""
    ended: list[BaseException | None] = [None, None]
    meetings = [Meeting(LOOPBACK, tokens[i], generations[i], i) for i in range(2)]
    addresses = [m.address for m in meetings]
    for meeting in meetings:
        meeting.addresses = addresses  # type: ignore[attr-defined]

    def body(index: int) -> None:
        try:
            (first, second)[index](meetings[index])
        except LinkLost as error:
            ended[index] = error

    in_threads(2, body)
    return ended


def join(meeting: Meeting) -> None:
    meeting.links(meeting.addresses, nothing).close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["token", "generation"])
def test_hosts_of_another_job_or_generation_do_not_meet(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
    tokens = (TOKEN, b"another") if which == "token" else (TOKEN, TOKEN)
    generations = (GENERATION, GENERATION + 1) if which == "generation" else (GENERATION, GENERATION)
    first, second = both(join, join, tokens, generations)
    assert str(first) == "the line to host 1: no connection within 1 s"
    assert str(second).startswith("the line to host 0: it does not answer as one of this job: ")


def test_a_host_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    meeting = Meeting(LOOPBACK, TOKEN, GENERATION, 0)
    with pytest.raises(LinkLost, match=r"the line to host 1: no connection within 0\.2 s"):
        meeting.links([meeting.address, (LOOPBACK, 1), (LOOPBACK, 2)], nothing)


def test_a_host_that_cannot_be_reached_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as closed:
        nobody = closed.getsockname()[:2]
    meeting = Meeting(LOOPBACK, TOKEN, GENERATION, 1)
    with pytest.raises(LinkLost, match=rf"the line to host 0: 127.0.0.1:{nobody[1]} cannot be reached: .*refused"):
        meeting.links([nobody, meeting.address], nothing)


def test_a_halt_is_noticed_while_another_host_says_nothing() -> None:
    """The kernel takes the connection of a stopped process; nothing is ever said on it."""
    looks = 0

    def idle() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise Halted

    with socket.create_server((LOOPBACK, 0)) as silent:
        meeting = Meeting(LOOPBACK, TOKEN, GENERATION, 1)
        before = time.monotonic()
        with pytest.raises(Halted):
            meeting.links([silent.getsockname()[:2], meeting.address], idle)
        assert time.monotonic() - before < 4  # well before the handshake is given up


def test_strangers_are_in_nobodys_way() -> None:
    """They say nothing, say nonsense, or hang up."""
    meetings = [Meeting(LOOPBACK, TOKEN, GENERATION, host) for host in range(2)]
    addresses = [m.address for m in meetings]
    strangers = [socket.create_connection(addresses[0], timeout=30) for _ in range(30)]
    for stranger in strangers[:10]:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    for stranger in strangers[10:20]:
        stranger.close()
    before = time.monotonic()
    found: dict[int, TcpLinks] = {}

    def body(host: int) -> None:
        found[host] = meetings[host].links(addresses, nothing)

    in_threads(2, body)
    assert time.monotonic() - before < 4
    found[0].send(1, Kind.FIGURES, np.array([1], np.uint8))
    place = np.zeros(1, np.uint8)
    found[1].receive(0, Kind.FIGURES, place)
    found[0].progress(0, 1.0)
    assert receive(found[1], 1) == [(0, Kind.FIGURES)]
    assert place[0] == 1
    for connection in [*strangers, *found.values()]:
        connection.close()


def test_a_meeting_that_is_over_listens_no_more() -> None:
    threads = set(threading.enumerate())
    meeting = Meeting(LOOPBACK, TOKEN, GENERATION, 0)
    meeting.links([meeting.address], nothing).close()
    socket.create_server(meeting.address).close()

    def halted() -> None:
        raise Halted

    meeting = Meeting(LOOPBACK, TOKEN, GENERATION, 0)
    with pytest.raises(Halted):
        meeting.links([meeting.address, (LOOPBACK, 1)], halted)
    socket.create_server(meeting.address).close()
    wait_until(lambda: set(threading.enumerate()) <= threads)
