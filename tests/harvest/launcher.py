"""Run by test_ranks: starts groups of processes as `accelerate launch` would, forked from here, where everything is imported.

Reads a launch per line from stdin, {"n": processes, "command": arguments of thresher, "log": folder, "kill": [rank, batch]},
and answers with their exit codes. A rank in `kill` dies of SIGKILL when it has handed over that batch.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch

import thresher.harvest.adapters.open_clip
import thresher.harvest.run  # noqa: F401 - so that no child has to import it
from thresher.cli import app
from thresher.data.store import StoreWriter

torch.set_num_threads(1)  # threads of a parent do not live on in its children


def die_after(batch: int) -> None:
    """Let this process die once a batch with this or a later number is handed over."""
    write = StoreWriter.write

    def write_then_die(self, given):
        write(self, given)
        if given.index >= batch:
            os.kill(os.getpid(), signal.SIGKILL)

    StoreWriter.write = write_then_die


def find_port() -> int:
    """A port that is free now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(rank: int, n: int, port: int, launch: dict) -> int:
    """One process of a launch; gives its id."""
    child = os.fork()
    if child:
        return child
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in names.items()})
    log = os.open(Path(launch["log"]) / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if (launch.get("kill") or [None])[0] == rank:
        die_after(launch["kill"][1])
    try:
        app(launch["command"])
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
    os._exit(99)


def main() -> None:
    """Start what is asked for until stdin ends."""
    for line in sys.stdin:
        launch = json.loads(line)
        port = find_port()
        children = [start(rank, launch["n"], port, launch) for rank in range(launch["n"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    main()
