"""The command ``python -m cluster.simulate``: run a command in the first of several simulated hosts.

Exit codes: the command's own, 128 + n if signal n ended it; 2 if hosts cannot be made as asked.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from cluster.simulate.hosts import Hosts, SimulationError, clean

_DESCRIPTION = """
Make several hosts on this machine and run COMMAND in the first. Environment variables tell it where they are:
SIMULATE_HOSTS and SIMULATE_ADDRESSES (separated by spaces), SIMULATE_AGENT (the launch agent, called as ssh is),
SIMULATE_HOSTFILE_MPICH and SIMULATE_HOSTFILE_OPENMPI. Everything is gone when COMMAND ends.
`python -m cluster.simulate clean` takes away what was left behind if this tool and its hosts were all killed at once.
"""


def run(options: argparse.Namespace) -> int:
    """Run the command in host 0; SIGTERM and Ctrl-C go to it, and what it does then decides."""
    with Hosts(options.hosts, bandwidth=options.bandwidth, slots=options.slots, subnet=options.subnet) as hosts:
        if options.print:
            for host in hosts:
                print(f"{host.name} {host.address}", file=sys.stderr)
        process: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, frame: FrameType | None) -> None:
            if process is None:
                raise SystemExit(128 + number)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, pass_on)
        process = hosts[0].popen(options.command, start_new_session=True)  # a Ctrl-C reaches it once, by us
        code = process.wait()
    return code if code >= 0 else 128 - code


def _fail(line: str) -> NoReturn:
    print(f"simulate: {line}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """The entry point."""
    if sys.argv[1:] == ["clean"]:
        for directory in clean():
            print(f"removed {directory}")
        return
    parser = argparse.ArgumentParser(prog="python -m cluster.simulate", description=_DESCRIPTION)
    parser.add_argument("--hosts", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--bandwidth", help="of each host's link, both ways: 100mbit, 1gbit (default: not limited)")
    parser.add_argument("--slots", type=int, default=1, help="ranks per host in the hostfiles (default: 1)")
    parser.add_argument("--subnet", default="10.77.0.0/24", help="private range of addresses (default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="print names and addresses first")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="put -- before it if it has options")
    try:
        sys.exit(run(parser.parse_args()))
    except SimulationError as error:
        _fail(str(error))


if __name__ == "__main__":
    main()
