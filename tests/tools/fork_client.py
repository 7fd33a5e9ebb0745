"""Stands in for the Python interpreter: asks `fork_server.py` for a process that does what this one was started for.

Called as `fork_client.py SERVER INTERPRETER SELF ARGUMENTS...`, SERVER being a folder with `socket` and `environment.json`.
What the server cannot be (options of the interpreter, other values of what libraries read when they are imported) is left to
INTERPRETER itself.
"""
# ruff: noqa: PTH109, PTH123, PTH208
# Importing pathlib takes longer than all that is done here.

import json
import os
import signal
import socket
import sys

READ_AT_IMPORT = ("HF_", "NUMBA_", "PYTHON", "TRITON_")
"""Beginnings of the names of such variables."""


def pick_command(arguments: list[str]) -> tuple[str, str, list[str]] | None:
    """Kind, program and arguments; None for what only an interpreter can do."""
    if len(arguments) > 1 and arguments[0] in ("-c", "-m"):
        return arguments[0], arguments[1], arguments[2:]
    if arguments and not arguments[0].startswith("-"):
        return "", arguments[0], arguments[1:]
    return None


def fits(folder: str) -> bool:
    """Whether libraries would read the same from this environment as they did in the server."""
    with open(f"{folder}/environment.json") as file:
        theirs = json.load(file)
    given = dict(os.environ)
    if given.get("HF_HUB_OFFLINE", "1") != "1":
        return False
    for environment in (theirs, given):
        for name in ("HF_HUB_OFFLINE", "HF_HOME"):
            environment.pop(name, None)
    names = {name for name in (*theirs, *given) if name.startswith(READ_AT_IMPORT)}
    return all(theirs.get(name) == given.get(name) for name in names)


def list_descriptors() -> list[int]:
    """Those that a process started from this one would have."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:  # of the listing itself
            continue
    return found


def main() -> None:
    """Ask, hand on signals, and end as the other process did."""
    folder, interpreter, executable, *arguments = sys.argv[1:]
    is_unbuffered = arguments[:1] == ["-u"]
    command = pick_command(arguments[is_unbuffered:])
    if command is None or not fits(folder):
        os.execv(interpreter, [interpreter, *arguments])
    descriptors = list_descriptors()
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"{folder}/socket")
    except OSError:  # the server could not be forked and has ended, saying why
        os.execv(interpreter, [interpreter, *arguments])
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name)
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    request = {
        "command": command,
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "executable": executable,
        "folder": os.getcwd(),
        "is_unbuffered": is_unbuffered,
    }
    body = json.dumps(request).encode()
    socket.send_fds(connection, [len(body).to_bytes(8, "big")], descriptors)
    connection.sendall(body)
    status = int(connection.recv(16) or b"99")
    if status < 0:
        if status not in (-signal.SIGKILL, -signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


main()
