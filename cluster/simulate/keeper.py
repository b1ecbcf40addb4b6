"""Process 1 of a simulated host: runs commands in it for the agent, and is what the host lives and dies with.

Owns the socket ``DIRECTORY/NAME.sock``. A request is one line of JSON (``command``, ``environment``, ``directory``)
that carries three file descriptors: the command's standard input, output and error. After it, each byte that the agent
sends is the number of a signal for the command's process group, and the answer is one line: the exit code, or the
negative number of the signal that ended the command. If the agent goes away first, the group is killed.

Invariant: when this process ends, the kernel ends every process of the host and takes its network away. It ends when
its standard input does, which only the tool holds open: so nothing survives the tool, not even one that was killed.
It makes no namespace and no link itself. Run as a script with a bare interpreter: it imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import shutil
import signal
import socket
import sys
from typing import Any

_HANDLED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def read_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the request and its file descriptors."""
    data, streams, _, _ = socket.recv_fds(connection, 65536, 3)
    while data and not data.endswith(b"\n"):
        more = connection.recv(65536)
        if not more:
            break
        data += more
    return json.loads(data), streams


def start(request: dict[str, Any], streams: list[int]) -> int:
    """Start a command in a session of its own and return its process number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for target, source in enumerate(streams):
            os.dup2(source, target)
        os.closerange(3, 4096)
        os.chdir(request["directory"])
        command = request["command"]
        os.execvpe(command[0], command, request["environment"])
    except OSError as error:
        is_missing = error.errno == errno.ENOENT
        os.write(2, f"{socket.gethostname()}: {request['command'][0]}: {error.strerror}\n".encode())
        os._exit(127 if is_missing else 126)
    finally:
        os._exit(125)


class Keeper:
    """Owns the commands that run in this host and the lines to their agents."""

    def __init__(self, path: str) -> None:
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(path)
        self._door.listen(64)
        self._lines: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door, selectors.EVENT_READ, self._accept)
        self._selector.register(0, selectors.EVENT_READ, self._owner)
        awake, wake = os.pipe()
        os.set_blocking(awake, False)
        os.set_blocking(wake, False)
        self._selector.register(awake, selectors.EVENT_READ, lambda: os.read(awake, 4096))
        signal.set_wakeup_fd(wake)
        for number in _HANDLED:
            signal.signal(number, lambda *_: None)  # also: a signal of a command to everybody does not end the host
        self._is_over = False

    def serve(self) -> None:
        """Serve until the tool is gone."""
        while not self._is_over:
            for key, _ in self._selector.select():
                key.data()
            self._reap()

    def _owner(self) -> None:
        self._is_over = not os.read(0, 4096)

    def _accept(self) -> None:
        line, _ = self._door.accept()
        try:
            request, streams = read_request(line)
        except (OSError, ValueError):  # who only looks whether this host is there
            line.close()
            return
        pid = start(request, streams)
        for stream in streams:
            os.close(stream)
        self._lines[pid] = line
        self._selector.register(line, selectors.EVENT_READ, lambda: self._read(pid, line))

    def _read(self, pid: int, line: socket.socket) -> None:
        try:
            numbers = line.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or bytes([signal.SIGKILL]):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
        if not numbers and pid in self._lines:
            self._forget(pid)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid in self._lines:
                    with contextlib.suppress(OSError):
                        self._lines[pid].sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                    self._forget(pid)

    def _forget(self, pid: int) -> None:
        line = self._lines.pop(pid)
        self._selector.unregister(line)
        line.close()


def main() -> None:
    directory, name, *rest = sys.argv[1:]
    socket.sethostname(name)
    Keeper(os.path.join(directory, f"{name}.sock")).serve()
    if rest == ["--remove"]:  # the last to know that the tool is gone: nobody else can take its files away
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
