"""Run by the fixture `open_launcher`: starts groups of processes as `accelerate launch` would, forked from here.

Its argument is a Python file, imported here with all that it imports, so that no child has to. Reads a launch per line from
stdin, {"n": processes, "call": a function of that file, "arguments": ..., "log": folder, "environment": ...}, calls it in every
process, and answers with their exit codes.
"""

import contextlib
import importlib.util
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

torch.set_num_threads(1)  # threads of a parent do not live on in its children


def load(file: Path) -> ModuleType:
    """Import a file by its path."""
    found = importlib.util.spec_from_file_location(file.stem, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@contextlib.contextmanager
def hold_port() -> Iterator[int]:
    """A port that nobody else is given while the block runs: of a socket that never listens, beside which the launch may."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def start(work: ModuleType, rank: int, port: int, launch: dict[str, Any]) -> int:
    """One process of a launch; gives its id."""
    child = os.fork()
    if child:
        return child
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": launch["n"], "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.clear()
    os.environ.update(launch["environment"] | {name: str(value) for name, value in names.items()})
    log = os.open(Path(launch["log"]) / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 99
    try:
        getattr(work, launch["call"])(*launch["arguments"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(work: ModuleType) -> None:
    """Start what is asked for until stdin ends."""
    for line in sys.stdin:
        launch = json.loads(line)
        with hold_port() as port:
            children = [start(work, rank, port, launch) for rank in range(launch["n"])]
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    loaded = load(Path(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    main(loaded)
