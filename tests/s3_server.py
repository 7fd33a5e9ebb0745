"""An S3 server on loopback (moto): prints its port, then obeys `down` and `up` from its input, keeping its buckets."""

import logging
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
    """Obey until the end of the input; `start` gives a server at a port, 0 for a free one."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = start(0)
    port = server.get_host_and_port()[1]
    say(port)
    for line in sys.stdin:
        if line.strip() == "down":
            server.stop()
        else:
            server = start(port)
        say(line.strip())


if __name__ == "__main__":
    serve(start)
