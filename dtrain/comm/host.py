"""Which host a process is on, and by which addresses others reach it.

Two processes are on one host if each can map the other's memory: same kernel, same process numbers, same network
(a host that is simulated by a network namespace counts as one of its own). Linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915
HOST_VARIABLE = "DTRAIN_HOST"
"""Processes in whose environment this differs count as on different hosts: to try several hosts on one machine."""


def host_id() -> str:
    """Return a text that is equal for two processes exactly if they can share memory."""
    parts = [socket.gethostname(), str(os.getuid()), os.environ.get(HOST_VARIABLE, "")]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    for kind in ("net", "pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(f"/proc/self/ns/{kind}"))
    return " ".join(parts)


def host_addresses() -> list[str]:
    """Return this host's IPv4 addresses by which others may reach it, without loopback; empty if there is none."""
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found.append(address)
    return found
