"""Run by conftest.py: becomes any Python process a test asks for in milliseconds, forked from here, where all is imported.

`fork_client.py`, which stands in for the interpreter, sends what it was called with over the socket in argv[1]; a child of
this process takes its descriptors, folder and environment and does what the interpreter would do with its arguments.
Ends with its stdin, which is the session of tests.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

MODULES = (
    "accelerate.commands.launch",
    "datasets",
    "thresher.batch.worker",
    "thresher.harvest.adapters.open_clip",
    "thresher.online.run",
    "thresher.pipeline",
    "thresher.testing.store",
    "thresher.train.sweep.run",
    "torch.distributed.run",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
    "typer.testing",
)
"""What takes seconds to import and every child has."""
SURVIVES = "jemalloc_bg_thd"
"""A thread of Arrow's allocator, which starts it again after a fork."""
FREE = 256
"""Descriptors from here on are nobody's."""


def receive(connection: socket.socket) -> tuple[dict[str, Any], dict[int, int]]:
    """A request, and the client's descriptors: which number each has there, and which here."""
    head, here, _, _ = socket.recv_fds(connection, 8, 250)
    while len(head) < 8:
        head += connection.recv(8 - len(head))
    body, size = b"", int.from_bytes(head, "big")
    while len(body) < size:
        body += connection.recv(size - len(body))
    request = json.loads(body)
    return request, dict(zip(request["descriptors"], here, strict=True))


def take_over(request: dict[str, Any], descriptors: dict[int, int]) -> None:
    """Make this process look as the client does to whoever started it."""
    moved = {number: fcntl.fcntl(here, fcntl.F_DUPFD, FREE) for number, here in descriptors.items()}
    os.closerange(3, FREE)
    for number, here in moved.items():
        os.dup2(here, number)
        os.close(here)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["executable"]
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=request["is_unbuffered"])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interpret(kind: str, what: str, arguments: list[str]) -> None:
    """Do what `python -c what`, `python -m what` or `python what` does."""
    sys.argv = [{"-c": "-c"}.get(kind, what), *arguments]
    sys.path[0] = {"-c": "", "-m": str(Path.cwd())}.get(kind, str(Path(what).parent))
    if kind == "-c":
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(what, run_name="__main__")


def end(request: dict[str, Any]) -> None:
    """Run what is asked for and end as the interpreter would, without taking the modules apart."""
    code: Any = 0
    try:
        interpret(*request["command"])
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        code = -signal.SIGINT
        traceback.print_exc()
    except BaseException:
        code = 1
        traceback.print_exc()
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code and code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit((code or 0) & 255)


def keep(connection: socket.socket) -> None:
    """Start the child, hand signals on to it, kill it when its client is killed, and tell the client how it ended."""
    request, descriptors = receive(connection)
    child = os.fork()
    if not child:
        take_over(request, descriptors)
        end(request)
    for here in descriptors.values():
        os.close(here)
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, connection], [], [])[0]:
        asked = connection.recv(1)
        os.kill(child, asked[0] if asked else signal.SIGKILL)
        if not asked:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(f"{status}".encode())
    os._exit(0)


def reap() -> None:
    """Take note of the keepers that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def wait_for_threads() -> None:
    """Return when this process has one thread: a fork would lose the others. Some end soon after the import that made them."""
    lost: list[str] = []
    for _ in range(200):
        names = []
        for path in Path("/proc/self/task").glob("*/comm"):
            with contextlib.suppress(OSError):  # it has just ended
                names.append(path.read_text().strip())
        lost = [name for name in names[1:] if name != SURVIVES]
        if not lost:
            return
        threading.Event().wait(0.05)
    raise RuntimeError(f"a fork would lose the threads {lost}")


def main(address: str) -> None:
    """Answer until stdin ends. The imports wait for the first request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    is_ready = False
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not is_ready:
            for name in MODULES:
                importlib.import_module(name)
            gc.freeze()
            wait_for_threads()
            is_ready = True
        if not os.fork():
            listener.close()
            keep(connection)
        connection.close()
        reap()


if __name__ == "__main__":
    main(sys.argv[1])
    reap()
    os._exit(0)  # nothing here needs to be taken apart
