"""Several hosts on this machine: each has its own network, host name, process numbers, /dev/shm and directory for
temporary files, and an address on one switch. All else of the file system is shared, as between hosts with NFS.

Owns the processes that keep the hosts up, the links between them and one directory of sockets and hostfiles.
Invariant: hosts have no name and no place outside of their processes (no `ip netns`, no interface on this machine), so
the kernel takes everything away when they end, and they end with the process that made them, however that ends.
Hosts have no way out: no route leads to anything but the other hosts, and two sets of hosts never meet, whatever their
addresses. Linux, root.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
PREFIX = "hosts-"
_START_SECONDS = 30.0
_SWITCH = "switch"
_PREPARE = """
set -e
mount -t sysfs sysfs "$TEMPORARY"
[ ! -e /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup "$TEMPORARY/fs/cgroup"
mount --move "$TEMPORARY" /sys
[ -z "$PRIVATE_HOSTS" ] || { mount -t tmpfs -o mode=1777 tmpfs /dev/shm && mount --bind "$PRIVATE_HOSTS" /etc/hosts; }
[ ! -e /proc/sys/net/ipv6 ] || echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip link set lo up
exec "$@"
"""


class SimulationError(Exception):
    """Hosts cannot be made or used as asked. The message is one line: what, where, what to do."""


def require_tools() -> None:
    """Raise SimulationError unless this process may make hosts."""
    if os.geteuid() != 0:
        raise SimulationError("simulated hosts need root, because they are namespaces of the kernel; use sudo")
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            raise SimulationError(f"the program {tool} is not installed; on Debian: apt-get install {package}")


def parse_bandwidth(text: str) -> float:
    """Return bits per second of, for example, 100mbit or 1gbit. Raises SimulationError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k|m|g)bit", text)
    if found is None or float(found[1]) == 0:
        raise SimulationError(f"bandwidth: expected a number with kbit, mbit or gbit, such as 1gbit, got {text!r}")
    return float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]]


class Host:
    """One host. ``name`` and ``address`` are known to all others; ``environment`` is what commands find in it."""

    def __init__(self, index: int, name: str, address: str, directory: Path) -> None:
        self.index, self.name, self.address = index, name, address
        self.temporary = directory / name
        self.environment: dict[str, str] = {"TMPDIR": str(self.temporary)}
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._handle = -1
        self.pid = 0

    def popen(self, command: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
        """Start a command here, with the options of `subprocess.Popen`.

        The process is the command's agent: signals reach the command, and killing it kills the command and its process
        group. Only SIGSTOP and SIGCONT have to be sent from inside of the host.
        """
        return subprocess.Popen(self._through_agent(command), **options)

    def run(self, command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command here to its end, with the options of `subprocess.run`."""
        return subprocess.run(self._through_agent(command), **options)

    def _through_agent(self, command: Sequence[object]) -> list[str]:
        agent = [sys.executable, "-IS", str(HERE / "agent.py"), str(self._directory), "--exec", self.name]
        return [*agent, *map(str, command)]

    @property
    def is_up(self) -> bool:
        return self._handle >= 0 and not select.select([self._handle], [], [], 0)[0]

    def begin(self, *, is_switch: bool = False) -> None:
        """Start the process that keeps this host up; `finish` waits for it."""
        (self._directory / f"{self.name}.sock").unlink(missing_ok=True)
        (self._directory / f"{self.name}.json").write_text(json.dumps(self.environment))
        self.temporary.mkdir(exist_ok=True)
        apart = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--uts", "--ipc", "--mount"]
        keeper = [sys.executable, "-IS", str(HERE / "keeper.py"), str(self._directory), self.name]
        self._process = subprocess.Popen(
            [*apart, "sh", "-c", _PREPARE, "sh", *keeper, *(["--remove"] if is_switch else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the commands
            env={
                **os.environ,
                "TEMPORARY": str(self.temporary),
                "PRIVATE_HOSTS": "" if is_switch else str(self._directory / "hosts"),
            },
        )

    def finish(self) -> None:
        """Wait until this host answers. Raises SimulationError."""
        assert self._process is not None
        assert self._process.stderr is not None
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
                line.connect(str(self._directory / f"{self.name}.sock"))
                size = struct.calcsize("3i")
                self.pid = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
                self._handle = os.pidfd_open(self.pid)
                return
            if self._process.poll() is not None:
                said = self._process.stderr.read().decode(errors="replace").strip().splitlines()
                reason = said[-1] if said else f"exit code {self._process.returncode}"
                raise SimulationError(f"{self.name} cannot be made: {reason}; a container needs CAP_SYS_ADMIN for it")
            if time.monotonic() > deadline:
                raise SimulationError(f"{self.name} has not come up in {_START_SECONDS:.0f} s; see whether ip hangs")
            time.sleep(0.002)

    def end(self) -> None:
        """SIGKILL everything here and wait until it is gone; do nothing if it is."""
        if self._process is None:
            return
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            select.select([self._handle], [], [])
            os.close(self._handle)
            self._handle = -1
        self._process.kill()  # before the host answered, this is what ends it
        self._process.wait()
        for stream in (self._process.stdin, self._process.stderr):
            assert stream is not None
            stream.close()
        self._process = None


class Hosts(Sequence[Host]):
    """``count`` hosts, up from the `with` to its end, named host0, host1, …

    ``bandwidth`` limits each link, both ways (such as 1gbit); ``slots`` is what the hostfiles say of each host;
    ``subnet`` is the private range of the addresses. Raises SimulationError.
    """

    def __init__(
        self, count: int, *, bandwidth: str | None = None, slots: int = 1, subnet: str = "10.77.0.0/24"
    ) -> None:
        require_tools()
        self._rate = parse_bandwidth(bandwidth) if bandwidth else 0.0
        try:
            network = ipaddress.IPv4Network(subnet)
        except ValueError as error:
            raise SimulationError(f"subnet: {error}; expected a private range such as 10.77.0.0/24") from None
        if not network.is_private or network.is_loopback or network.num_addresses < count + 2:
            raise SimulationError(f"subnet: {subnet} is not a private range with room for {count} hosts")
        if count < 1 or slots < 1:
            raise SimulationError(f"expected at least 1 host and 1 slot, got {count} and {slots}")
        self._length = network.prefixlen
        self.slots = slots
        self._addresses = [str(network[1 + i]) for i in range(count)]
        self._members: list[Host] = []

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # held as long as this process is there: see `clean`
        self._switch = Host(-1, _SWITCH, "", self.directory)
        self._members = [Host(i, f"host{i}", a, self.directory) for i, a in enumerate(self._addresses)]
        try:
            self._write_files()
            for host in self._members:
                host.environment |= self._variables()
                host.begin()
            self._switch.begin(is_switch=True)
            self._switch.finish()
            self._ip(self._switch, "link add name bridge type bridge", "link set bridge up")
            for host in self._members:
                host.finish()
                self._plug(host)
        except BaseException:
            self._take_away()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._take_away()

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: Any) -> Any:
        return self._members[index]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._members)

    @property
    def agent(self) -> Path:
        """The launch agent: a program that is called as ssh is."""
        return self.directory / "agent"

    def hostfile(self, flavour: str) -> Path:
        """The hostfile for ``mpich`` or ``openmpi``."""
        return self.directory / f"hostfile.{flavour}"

    def bytes_sent(self, index: int) -> int:
        """Return the bytes that have left host ``index`` by its link since it came up, with the headers of frames."""
        for line in Path(f"/proc/{self._up(index).pid}/net/dev").read_text().splitlines():
            if line.strip().startswith("eth0:"):
                return int(line.split(":")[1].split()[8])
        raise SimulationError(f"host{index} has no link")

    def cut(self, index: int) -> None:
        """Pull the plug of a host: nothing of it arrives any more, and nobody is told."""
        self._ip(self._switch, f"link set port{index} down")

    def mend(self, index: int) -> None:
        """Put the plug of a host that was cut back in."""
        self._ip(self._switch, f"link set port{index} up")

    def kill(self, index: int) -> None:
        """SIGKILL everything in a host. The kernel closes its connections; for a power failure, `cut` it first."""
        self._members[index].end()
        with contextlib.suppress(SimulationError):  # it goes with the host, but not at once
            self._ip(self._switch, f"link delete port{index}")

    def boot(self, index: int) -> None:
        """Bring a host that was killed up again, with the same name and address."""
        if self._members[index].is_up:
            raise SimulationError(f"host{index} is up; kill it first")
        self._members[index].begin()
        self._members[index].finish()
        self._plug(self._members[index])

    def _up(self, index: int) -> Host:
        if not self._members[index].is_up:
            raise SimulationError(f"host{index} is down; boot({index}) brings it up")
        return self._members[index]

    def _write_files(self) -> None:
        names = "".join(f"{host.address} {host.name}\n" for host in self._members)
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self.hostfile("mpich").write_text("".join(f"{h.name}:{self.slots}\n" for h in self._members))
        self.hostfile("openmpi").write_text("".join(f"{h.name} slots={self.slots}\n" for h in self._members))
        self.agent.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{HERE}/agent.py" "{self.directory}" "$@"\n')
        self.agent.chmod(0o755)

    def _variables(self) -> Mapping[str, str]:
        return {
            "SIMULATE_HOSTS": " ".join(host.name for host in self._members),
            "SIMULATE_ADDRESSES": " ".join(host.address for host in self._members),
            "SIMULATE_AGENT": str(self.agent),
            "SIMULATE_HOSTFILE_MPICH": str(self.hostfile("mpich")),
            "SIMULATE_HOSTFILE_OPENMPI": str(self.hostfile("openmpi")),
        }

    def _plug(self, host: Host) -> None:
        port = f"port{host.index}"
        self._ip(
            self._switch,
            # A machine keeps its hardware address: with a new one, the others would look for the old for seconds.
            f"link add {port} type veth peer name eth0 address 02:00:00:00:{host.index // 256:02x}:"
            f"{host.index % 256:02x} netns {host.pid}",
            f"link set {port} master bridge up",
        )
        self._ip(host, f"address add {host.address}/{self._length} dev eth0", "link set eth0 up")
        if self._rate:
            burst = max(int(self._rate / 8 * 0.002), 32768)  # bytes of 2 ms: the timer must not be the limit
            for at, link in ((self._switch, port), (host, "eth0")):
                limit = f"rate {self._rate:.0f}bit burst {burst} latency 100ms"
                self._batch(at, "tc", f"qdisc add dev {link} root tbf {limit}")

    def _ip(self, at: Host, *lines: str) -> None:
        self._batch(at, "ip", *lines)

    def _batch(self, at: Host, tool: str, *lines: str) -> None:
        """Run lines of ``ip`` or ``tc`` in the network of a host; process numbers in them are this machine's."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{at.pid}/ns/net", tool, "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
            raise SimulationError(f"{tool} {lines[0]} in {at.name}: {said}")

    def _take_away(self) -> None:
        for host in (*self._members, self._switch):
            host.end()
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def clean() -> list[Path]:
    """Take away what tools that are gone have left behind; return their directories. Those in use are left alone."""
    removed = []
    for directory in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for door in directory.glob("*.sock"):
                    _kill_keeper(door)
                shutil.rmtree(directory)
                removed.append(directory)
            finally:
                os.close(lock)
    return removed


def _kill_keeper(door: Path) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.connect(str(door))
        pid = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
        os.kill(pid, signal.SIGKILL)
