"""Draw the figures of a finished analysis again, from its files alone."""

from pathlib import Path

from thresher.analyze.plots.draw import FIGURES, Which, draw_run
from thresher.analyze.plots.read import read_json
from thresher.errors import AnalysisError
from thresher.files import write_atomic
from thresher.runs import canonical_json, fingerprint_file, refuse_foreign

MANIFEST = "manifest.json"


def redraw(run: Path, out: Path | None, which: Which) -> list[Path]:
    """Draw into `out`, or where the analysis has them; returns the files. The digests of the manifest follow in that case.

    Raises AnalysisError: no finished analysis, files that cannot be read, `out` cannot be written; ConfigError: `out` holds
    other things.
    """
    manifest = read_json(run / MANIFEST)
    if manifest is None:
        raise AnalysisError(f"{run}: no finished analysis: {MANIFEST} is missing; run `thresher analyze` into it first")
    target = run / FIGURES if out is None else out
    if out is not None:
        refuse_foreign(out, ["index.json"])
    try:
        written = [target / name for name in draw_run(run, which, target)]
        if out is None:
            drawn = {path.relative_to(run).as_posix(): fingerprint_file(path) for path in written}
            known = {name: digest for name, digest in manifest["files"].items() if (run / name).is_file()}
            files = dict(sorted((known | drawn).items()))
            write_atomic(run / MANIFEST, [canonical_json(manifest | {"files": files})])
    except OSError as error:
        raise AnalysisError(f"{target}: the figures cannot be written ({error.strerror}); choose another --out") from error
    return written
