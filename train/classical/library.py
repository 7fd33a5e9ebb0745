"""scikit-learn, which only some of the classical dictionaries need, and only when they are fitted."""

import importlib
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from thresher.errors import ConfigError
from thresher.progress import log


def find_sklearn(module: str, kind: str) -> Any:
    """A module of scikit-learn. Raises ConfigError that says how to install it."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ConfigError(
            f"sae.kind={kind}: it is fitted by scikit-learn, which is not installed: pip install 'thresher[classical]'"
        ) from error


@contextmanager
def report_unfinished(kind: str, iterations: int) -> Generator[None, None, None]:
    """Turn scikit-learn's warning that a fit did not converge into one line of news."""
    unfinished = find_sklearn("exceptions", kind).ConvergenceWarning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", unfinished)
        yield
    for warning in caught:
        if issubclass(warning.category, unfinished):
            log(f"fit {kind}: not converged after iterations={iterations}; its last state is kept")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
