"""What test_ranks lets every process of a launch do: a command of thresher, in which one of them may die."""

import os
import signal
import threading

import open_clip
import pyarrow as pa
import transformers

import thresher.harvest.adapters.open_clip
import thresher.harvest.run  # noqa: F401 - so that no child has to import it
from thresher.cli import app
from thresher.data.store import StoreWriter

# Nothing that a harvest imports when it needs it is left for each child to import.
IMPORTED = (open_clip.CLIP, transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast, pa.array(["a"]))


def command(arguments: list[str], kill: tuple[int, int, float] | None) -> None:
    """Run it; `kill` is a rank, which dies so many seconds after it has handed over a batch with this or a later number."""
    if kill is not None and kill[0] == int(os.environ["RANK"]):
        die_after(kill[1], kill[2])
    app(arguments)


def die_after(batch: int, seconds: float) -> None:
    """Let this process be killed while it goes on."""
    write, timers = StoreWriter.write, list[threading.Timer]()

    def write_then_die(self, given):
        write(self, given)
        if given.index >= batch and not timers:
            timers.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)))
            timers[0].daemon = True
            timers[0].start()

    StoreWriter.write = write_then_die
