"""The report: one HTML file without any reference to the outside, to be opened from disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from thresher.analyze.gallery import Card
from thresher.analyze.results import TITLES, summary_table
from thresher.files import write_atomic


class Figure(NamedTuple):
    """One figure of the report."""

    name: str
    """File name without ending, in `figures/`."""
    title: str
    caption: str
    """What to see in it."""
    svg: str
    """Inline SVG."""
    alt: str


class Page(NamedTuple):
    """Everything the report shows."""

    results: Mapping[str, Any]
    """metrics.json."""
    figures: Sequence[Figure]
    cards: Mapping[str, Sequence[Card]]
    """Features to look at, per dictionary; empty without two modalities."""
    concepts: Sequence[Mapping[str, Any]]
    """Rows of concepts.csv; empty without ground truth."""
    site: str | None = None
    """Path of the site's first page beside the report; None without one."""


def write_report(path: Path, page: Page) -> None:
    """Render the page; everything that comes from data is escaped."""
    # Environment(autoescape=True): captions and names are other people's text.
    loader = PackageLoader("thresher.analyze", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": show_number, "percent": show_percent, "interval": show_interval, "share": show_share}
    template = environment.get_template("report.html.jinja")
    text = template.render(page._asdict() | {"summary": summary_table(page.results), "titles": TITLES})
    write_atomic(path, [text.encode()])


def show_number(found: Mapping[str, Any] | float | None, digits: int = 3) -> str:
    """A number, or an estimate's value; a dash where it is undefined."""
    value = found["value"] if isinstance(found, Mapping) else found
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def show_interval(found: Mapping[str, Any], digits: int = 3) -> str:
    """The interval of an estimate in brackets; empty when there is none."""
    if found["low"] is None:
        return ""
    return f"[{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def show_percent(found: Mapping[str, Any] | float | None) -> str:
    """A share in percent."""
    value = found["value"] if isinstance(found, Mapping) else found
    return "-" if value is None or value != value else f"{100 * value:.1f}%"


def show_share(found: Mapping[str, Any]) -> str:
    """A share in percent with its bounds."""
    if found["low"] is None:
        return show_percent(found)
    return f"{show_percent(found)} ({100 * found['low']:.0f} to {100 * found['high']:.0f})"
