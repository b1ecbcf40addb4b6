"""Two processes are on one host if, and only if, they can share memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from dtrain.comm.host import HOST_VARIABLE, host_addresses, host_id

SAY = "from dtrain.comm.host import host_id; print(host_id())"


def of_a_child(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SAY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_processes_of_a_machine_are_on_one_host() -> None:
    assert of_a_child() == host_id()


def test_hosts_are_told_apart_by_the_variable() -> None:
    first, second = of_a_child(**{HOST_VARIABLE: "a"}), of_a_child(**{HOST_VARIABLE: "b"})
    assert len({host_id(), first, second}) == 3


@pytest.mark.parametrize("namespace", ["net", "pid"])
def test_a_namespace_is_a_host_of_its_own(monkeypatch: pytest.MonkeyPatch, namespace: str) -> None:
    here, readlink = host_id(), os.readlink

    def other(path: str) -> str:
        return f"{namespace}:[1]" if path == f"/proc/self/ns/{namespace}" else readlink(path)

    monkeypatch.setattr(os, "readlink", other)
    assert host_id() != here


def test_another_user_cannot_map_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    here = host_id()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert host_id() != here


def test_another_machine_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    here = host_id()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert host_id() != here


def test_the_addresses_are_of_this_host_and_not_loopback() -> None:
    addresses = host_addresses()
    assert len(set(addresses)) == len(addresses)
    assert not any(a.startswith("127.") for a in addresses)
    for address in addresses:
        socket.create_server((address, 0)).close()


def test_an_interface_without_an_address_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = host_addresses()
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "nothere0"), (2, "lo")])
    assert host_addresses() == []
    monkeypatch.undo()
    assert host_addresses() == found
