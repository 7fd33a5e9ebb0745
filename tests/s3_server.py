"""An S3 server on loopback (moto): prints its port, then obeys `down` and `up` from its input, keeping its buckets."""

import logging
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


def serve(start: Callable[[int], Any]) -> None:
    """Obey until the end of the input; `start` gives a server at a port.

    The port belongs to a socket that never listens: while the server is down nobody else is given it, and nobody answers.
    """
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
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
