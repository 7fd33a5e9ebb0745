"""From what an analysis found to what its site shows."""

import functools
from collections.abc import Mapping

import numpy as np

from thresher.analyze.battery.study import EDGES, FEATURES, Finding
from thresher.analyze.context import Context, Outcome
from thresher.analyze.derived import measure_thumbnails, read_thumbnails, scale_features
from thresher.analyze.single import Single
from thresher.analyze.site.dashboards import Crossed, Dictionary
from thresher.analyze.site.items import Catalogue, Thumbnails
from thresher.analyze.site.places import Places, find_pictures, list_pictures, read_places
from thresher.analyze.site.traces import Traces, Wanted, encode_items, trace
from thresher.data.store import Store


def gather_dictionaries(context: Context, outcomes: Mapping[str, Outcome]) -> list[Dictionary]:
    """What the site shows of each dictionary."""
    found = [_gather(name, one) for name, one in outcomes.items()]
    return [_add_rows(context, one, outcomes[one.name]) for one in found if one is not None]


def gather_catalogues(context: Context) -> dict[str, Catalogue]:
    """The held-out items of each modality, and the images that texts were read behind."""
    store, has_rows = context.inputs.store, context.config.site.traces > 0
    found = {
        name: _open_catalogue(store, name, panel.items, read_places(store, panel) if has_rows else None)
        for name, panel in context.panels.items()
    }
    if "text" not in found or found["text"].places is None:
        return found
    panel = context.panels["text"]
    if "image" not in found:
        images = np.unique(list_pictures(store, panel))
        if images.max(initial=-1) < 0:
            return found
        found["image"] = _open_catalogue(store, "image", images[images >= 0], None)
    picture = find_pictures(store, panel, found["image"].items)
    if (picture >= 0).any():
        found["text"] = found["text"]._replace(picture=picture)
    return found


def _open_catalogue(store: Store, modality: str, items: np.ndarray, places: Places | None) -> Catalogue:
    """The items of a modality, their pictures left on disk."""
    if modality == "text":
        return Catalogue(store.items("text", ["key", "text"]), items, places)
    thumbnails = Thumbnails(measure_thumbnails(store, items), functools.partial(read_thumbnails, store))
    return Catalogue(store.items("image", ["key"]), items, places, thumbnails=thumbnails)


def _gather(name: str, outcome: Outcome) -> Dictionary | None:
    if outcome.finding is not None:
        return describe_dictionary(name, outcome.finding)
    return None if outcome.single is None else describe_single_dictionary(name, outcome.single)


def describe_dictionary(name: str, finding: Finding) -> Dictionary:
    """What the site shows of a dictionary that the battery judged."""
    sides, tables = finding.judged.sides, finding.tables
    codes = {"image": sides.image.codes, "text": sides.text.codes}
    crossed = Crossed(tables[EDGES], sides.pairs)
    return Dictionary(name, tables[FEATURES], finding.groups, codes, sides.dictionary, crossed, finding.steps)


def describe_single_dictionary(name: str, single: Single) -> Dictionary:
    """What the site shows of a dictionary whose features have no class."""
    return Dictionary(name, single.features, single.groups, single.codes, single.atoms, None, single.steps)


def _add_rows(context: Context, one: Dictionary, outcome: Outcome) -> Dictionary:
    """The same dictionary with what items of many rows are ranked by, and a way to read their codes."""
    panels = {name: panel for name, panel in context.panels.items() if len(panel.rows) > len(panel.items)}
    if not panels:
        return one
    trained, store = context.inputs.saes[one.name], context.inputs.store
    norm = np.linalg.norm(trained.sae.dictionary.detach().double().cpu().numpy(), axis=1)
    folder = None if context.scratch is None else context.scratch / one.name
    ranked = {
        name: scale_features(outcome.items[name], norm, None if folder is None else folder / f"ranked-{name}")
        for name in panels
    }

    def look_up(modality: str, wanted: Wanted) -> Traces:
        items = np.unique(wanted.item)
        return trace(encode_items(trained, store, panels[modality], items, context.config.chunk_rows), wanted)

    return one._replace(ranked=ranked, tracer=look_up)
