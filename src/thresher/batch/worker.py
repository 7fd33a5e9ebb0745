"""Run as a process of its own by a batch: does one unit. `python -m thresher.batch.worker FOLDER UNIT`."""

import os
import sys
import threading
from pathlib import Path

import typer

from thresher.batch.units import Unit, UnitFiles
from thresher.cli_common import guard
from thresher.config import validate


def run_unit(files: UnitFiles, unit: Unit) -> None:
    """Do what a unit says; what is finished of it is not repeated. Raises what the stage raises."""
    # Imported here: each stage takes seconds to import.
    where = str(files.path(unit.name))
    match unit.stage:
        case "harvest":
            from thresher.harvest import run as harvest

            harvest.run(validate(harvest.HarvestConfig, unit.config, where))
        case "train":
            from thresher.train import run as train
            from thresher.train.matched import run_matched

            config = validate(train.TrainConfig, unit.config, where)
            if unit.match_l0 is None:
                train.run(config)
            else:
                run_matched(config, files.read(unit.match_l0).out)
        case "analyze":
            from thresher.analyze import run as analyze

            analyze.run(validate(analyze.AnalyzeConfig, unit.config, where))
    files.mark_done(unit)


def main(folder: str, name: str) -> None:
    """Do the unit; ends when the process at the other end of standard input does."""

    def follow() -> None:
        # Not through sys.stdin, whose lock would be held when this process ends well.
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    files = UnitFiles(Path(folder))
    try:
        guard(run_unit)(files, files.read(name))
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
