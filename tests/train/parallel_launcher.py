"""Run by test_parallel: starts groups of processes as `accelerate launch` would, forked from here, with all imported.

Reads a launch per line from stdin, {"n": processes, "check": name, "arguments": ..., "log": folder}, and answers with their
exit codes. A check is a function of `parallel_checks`, called with the arguments in every process.
"""

import json
import os
import socket
import sys
import traceback
import warnings
from pathlib import Path

import parallel_checks
import torch

torch.set_num_threads(1)  # threads of a parent do not live on in its children
warnings.simplefilter("error")


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
    code = 99
    try:
        getattr(parallel_checks, launch["check"])(*launch["arguments"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
