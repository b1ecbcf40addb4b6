"""A TCP relay that makes a line bad: slow, far, silent, broken or wrong.

    proxy.py LISTEN:PORT TARGET:PORT

Owns one listening port and the connections through it; every byte that comes in at one side goes out at the other, in
order, unless it was told otherwise, by a line on its standard input: see `Proxy`, whose methods send them. It answers
each line with ``ok`` or ``error …``, and ends with its standard input.

It relays streams, not packets. TCP repairs the loss of packets, so all that a program sees of it is that bytes come
later: show it with `stall`. Bytes that were sent before a stall may still be on their way in buffers of the kernel.
Addresses must be private or loopback: it never carries traffic to or from anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Self

_CHUNK = 65536
_HELD = 64  # chunks in flight per direction; more would be a buffer without an end


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side has an error, and not the end of the stream."""
    with contextlib.suppress(OSError):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Line:
    """What is done to the bytes: shared by all connections."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.bytes_per_second = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.flip_after: dict[str, int | None] = {"up": None, "down": None}
        self.carried = {"up": 0, "down": 0}
        self.writers: set[asyncio.StreamWriter] = set()
        self.is_refusing = False

    def damage(self, way: str, data: bytes) -> bytes:
        """Flip the lowest bit of the byte that was asked for, if it is in ``data``; once."""
        start, at = self.carried[way], self.flip_after[way]
        self.carried[way] += len(data)
        if at is None or not start <= at < self.carried[way]:
            return data
        self.flip_after[way] = None
        changed = bytearray(data)
        changed[at - start] ^= 1
        return bytes(changed)

    async def carry(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction of one connection to its end."""
        held: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_HELD)  # b"" is the end, None a reset

        async def take_in() -> None:
            data: bytes | None = b"-"
            while data:
                try:
                    data = await reader.read(_CHUNK)
                except OSError:
                    data = None
                await held.put((asyncio.get_running_loop().time() + self.delay, data))

        async def give_out() -> None:
            now, free = asyncio.get_running_loop().time, 0.0
            while True:
                due, data = await held.get()
                if self.bytes_per_second and data:
                    due = free = max(due, free, now()) + len(data) / self.bytes_per_second
                await asyncio.sleep(due - now())
                await self.open.wait()
                if data is None:
                    reset(writer)
                    return
                if not data:
                    break
                writer.write(self.damage(way, data))
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

        taking = asyncio.create_task(take_in())
        try:
            with contextlib.suppress(OSError):
                await give_out()
        finally:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await taking

    def drop(self) -> None:
        """Break every connection with a reset: both ends have an error at once."""
        for writer in list(self.writers):
            reset(writer)

    def obey(self, words: list[str]) -> None:
        """Do what a control line says. Raises ValueError."""
        match words:
            case ["delay", seconds]:
                self.delay = float(seconds)
            case ["rate", number]:
                self.bytes_per_second = float(number)
            case ["stall"]:
                self.open.clear()
            case ["stall", seconds]:
                self.open.clear()
                asyncio.get_running_loop().call_later(float(seconds), self.open.set)
            case ["resume"]:
                self.open.set()
                self.is_refusing = False
            case ["drop"]:
                self.drop()
            case ["refuse"]:
                self.is_refusing = True
                self.drop()
            case ["flip", ("up" | "down") as way, count]:
                self.flip_after[way] = self.carried[way] + int(count)
            case _:
                raise ValueError(f"no such command: {' '.join(words)}")


async def relay(listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Serve until standard input ends."""
    line = Line()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line.is_refusing:
            reset(writer)
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(*target)
        except OSError:
            reset(writer)
            return
        line.writers |= {writer, there_writer}
        try:
            await asyncio.gather(line.carry("up", reader, there_writer), line.carry("down", there_reader, writer))
        finally:
            line.writers -= {writer, there_writer}
            writer.close()
            there_writer.close()

    server = await asyncio.start_server(serve, *listen)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(server.sockets[0].getsockname()[1], flush=True)
    while said := await commands.readline():
        try:
            line.obey(said.decode().split())
            print("ok", flush=True)
        except ValueError as error:
            print(f"error {error}", flush=True)
    os._exit(0)


def private_address(text: str) -> tuple[str, int]:
    """Return (address, port). Raises ValueError for one that is not private or loopback."""
    host, _, port = text.rpartition(":")
    address = ipaddress.IPv4Address(host)
    if not address.is_private or address.is_unspecified:
        raise ValueError(f"{host} is neither private nor loopback")
    return host, int(port)


class Proxy:
    """A relay in the host ``at`` (a `Host`; None is this machine), from the `with` to its end.

    ``port`` is where it listens, on ``address``. "up" is the way from who connects to ``target``, "down" the way back.
    """

    def __init__(self, target: str, *, at: Any = None, port: int = 0) -> None:
        self.address = at.address if at is not None else "127.0.0.1"
        command = [sys.executable, "-IS", os.path.abspath(__file__), f"{self.address}:{port}", target]
        popen = subprocess.Popen if at is None else at.popen
        self._process = popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()
        said = self._answers.readline()
        if not said:
            self.close()
            raise OSError(f"the proxy for {target} cannot listen on {self.address}:{port}")
        self.port = int(said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def delay(self, seconds: float) -> None:
        """Let every byte from now on arrive ``seconds`` later, each way; 0 ends it."""
        self._tell(f"delay {seconds}")

    def rate(self, bytes_per_second: float) -> None:
        """Carry no more than this, each way and connection; 0 ends it."""
        self._tell(f"rate {bytes_per_second}")

    def stall(self, seconds: float | None = None) -> None:
        """Carry nothing for ``seconds``, or until `resume`, and tell nobody: a partition, or packets that were lost."""
        self._tell("stall" if seconds is None else f"stall {seconds}")

    def resume(self) -> None:
        """End `stall` and `refuse`; what has come in meanwhile is carried."""
        self._tell("resume")

    def drop(self) -> None:
        """Break all connections with a reset; new ones are carried."""
        self._tell("drop")

    def refuse(self) -> None:
        """Break all connections and every new one, until `resume`."""
        self._tell("refuse")

    def flip(self, way: str, after: int) -> None:
        """Change one bit of the byte that comes after the next ``after`` bytes on their ``way``, "up" or "down"."""
        self._tell(f"flip {way} {after}")

    def close(self) -> None:
        """End the relay and its connections."""
        self._commands.close()
        self._process.wait()
        self._answers.close()

    def _tell(self, line: str) -> None:
        with self._lock:
            self._commands.write(f"{line}\n")
            self._commands.flush()
            answer = self._answers.readline().strip()
        if answer != "ok":
            raise ValueError(answer.removeprefix("error ") or "the proxy is gone")


def main() -> None:
    try:
        listen, target = map(private_address, sys.argv[1:])
    except ValueError as error:
        print(f"proxy: {error}; usage: proxy.py ADDRESS:PORT ADDRESS:PORT", file=sys.stderr)
        sys.exit(2)
    try:
        asyncio.run(relay(listen, target))
    except OSError as error:
        print(f"proxy: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
