"""Messages arrive whole and in order, and the end of the other side is noticed after its last message."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.comm.channel import Channel, ChannelClosed, channel_pair

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
messages = st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=6)


@settings(max_examples=25, deadline=None)
@given(messages)
def test_messages_arrive_as_they_were_sent(sent: list[dict[str, object]]) -> None:
    here, there = channel_pair()
    other = Channel(there)
    for message in sent:
        here.send(message)
    assert [other.receive() for _ in sent] == sent
    assert other.receive(timeout_seconds=0) is None
    here.close()
    with pytest.raises(ChannelClosed):
        other.receive()
    other.close()


def test_a_message_in_pieces_is_not_handed_out_early() -> None:
    here, there = channel_pair()
    there.sendall(b'{"type": "jo')
    assert here.receive(timeout_seconds=0) is None
    there.sendall(b'ined"}\n{"type"')
    assert here.receive(timeout_seconds=0) == {"type": "joined"}
    assert here.receive(timeout_seconds=0) is None
    there.sendall(b': "halted"}\n')
    assert here.receive() == {"type": "halted"}
    there.close()
    here.close()


def test_the_last_messages_of_a_dead_peer_are_read_before_its_end() -> None:
    here, there = channel_pair()
    here.send({"type": "go"})  # never read by the peer: its end then looks like a reset connection
    there.sendall(b'{"n": 1}\n{"n": 2}\n{"n": ')
    there.close()
    assert here.receive(timeout_seconds=0) == {"n": 1}
    assert here.receive(timeout_seconds=0) == {"n": 2}
    with pytest.raises(ChannelClosed):
        here.receive(timeout_seconds=0)
    here.close()


def test_sending_to_a_dead_peer_says_so() -> None:
    here, there = channel_pair()
    there.close()
    with pytest.raises(ChannelClosed):
        here.send({"type": "go"})
    here.close()


def test_a_message_larger_than_the_socket_buffer() -> None:
    here, there = channel_pair()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    here_socket_bytes = "x" * 150_000
    here.send({"stack": here_socket_bytes})
    other = Channel(there)
    assert other.receive() == {"stack": here_socket_bytes}
    here.close()
    other.close()


def test_descriptors_come_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        here, there = channel_pair()
        here.close()
        there.close()
    assert len(os.listdir("/proc/self/fd")) == before
