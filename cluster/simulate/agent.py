"""Run a command in a simulated host: what ssh does between real ones, also as the launch agent of an mpirun.

    agent.py DIRECTORY [OPTION...] HOST WORD...

The words are joined and given to a shell, in the home directory and with a bare environment, as ssh does; options
(``-x``) are ignored. With ``--exec`` first, the words are a command that gets this process's environment and directory.
Standard input, output and error are the caller's own. Signals are passed on, and the exit code, or the signal that
ended the command, is this process's too. Exit code 255: no such host. Run as a script with a bare interpreter: it
imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from types import FrameType

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def login_environment(variables: dict[str, str]) -> dict[str, str]:
    """What a command finds that was started over the network: nothing of the caller's but who and where it is."""
    kept = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "LANG") if name in os.environ}
    return {"PATH": _PATH, "HOME": "/", "SHELL": "/bin/sh"} | kept | variables


def main() -> int:
    directory, *words = sys.argv[1:]
    is_exact = words[:1] == ["--exec"]
    while words and words[0].startswith("-"):
        words.pop(0)
    if len(words) < 2:
        print("usage: agent [OPTION...] HOST COMMAND...", file=sys.stderr)
        return 255
    host, *command = words
    try:
        with open(os.path.join(directory, f"{host}.json")) as file:
            variables = json.load(file)
        line = socket.socket(socket.AF_UNIX)
        line.connect(os.path.join(directory, f"{host}.sock"))
    except OSError:
        print(f"agent: no host {host} is up in {directory}", file=sys.stderr)
        return 255
    if is_exact:
        request = {"command": command, "environment": {**os.environ, **variables}, "directory": os.getcwd()}
    else:
        environment = login_environment(variables)
        shell = ["/bin/sh", "-c", " ".join(command)]
        request = {"command": shell, "environment": environment, "directory": environment["HOME"]}

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            line.send(bytes([number]))

    data = json.dumps(request).encode() + b"\n"
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until the command is there to get them
    sent = socket.send_fds(line, [data], [0, 1, 2])
    if sent < len(data):  # a command may have ended by now, and its line with it
        line.sendall(data[sent:])
    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    try:
        answer = line.recv(64)
    except ConnectionResetError:
        answer = b""
    if not answer:
        print(f"agent: host {host} went down", file=sys.stderr)
        return 255
    code = int(answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
