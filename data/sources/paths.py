"""Many files from few words: globs and braces."""

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from thresher.errors import SourceError

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_paths(patterns: Sequence[str]) -> list[Path]:
    """The files that paths, globs (`*`, `?`, `[...]`, `**`) and braces (`{000..012}`, `{a,b}`) stand for, each once.

    In the order of the patterns; what a glob finds, by name. Raises SourceError: nothing matches, or a file is missing.
    """
    found = [path for pattern in patterns for plain in expand_braces(pattern) for path in _expand_glob(plain)]
    return list(dict.fromkeys(found))


def expand_braces(pattern: str) -> Iterator[str]:
    """The texts that a pattern with braces stands for, as a shell gives them: `{08..10}` keeps its width."""
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    for choice in _expand_choice(found.group(1)):
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _expand_choice(content: str) -> list[str]:
    numbers = RANGE.fullmatch(content)
    if numbers is None:
        return content.split(",")
    first, last = numbers.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _expand_glob(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        if not Path(pattern).is_file():
            raise SourceError(f"{pattern}: no such file; name the files that are there, or use a glob (*)")
        return [Path(pattern)]
    # Path.glob takes no pattern with a drive or root in it.
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    found = [Path(name) for name in names if Path(name).is_file()]
    if not found:
        raise SourceError(f"{pattern}: no file matches; give paths or globs of files that are there")
    return found
