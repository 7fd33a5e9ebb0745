"""An S3 server on loopback (moto): prints its port, then obeys `down` and `up` from its input, keeping its buckets."""

import contextlib
import logging
import random
import socket
import sys
from collections.abc import Callable
from typing import Any

from moto.server import ThreadedMotoServer


def start(port: int) -> ThreadedMotoServer:
    """A server that answers."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    return server


def say(word: object) -> None:
    """Answer the test that has asked."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def find_port() -> int:
    """A free port below those that systems hand out: nobody else is given it while the server is down."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def serve(start: Callable[[int], Any]) -> None:
    """Obey until the end of the input; `start` gives a server at a port."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    port = find_port()
    server = start(port)
    say(port)
    for line in sys.stdin:
        if line.strip() == "down":
            server.stop()
        else:
            server = start(port)
        say(line.strip())


if __name__ == "__main__":
    serve(start)
