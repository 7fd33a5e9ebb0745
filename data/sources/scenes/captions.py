"""Say what a scene shows: several forms, attributes left out at random, families named instead of leaves."""

from collections.abc import Callable, Iterator

from thresher.data.records import Text
from thresher.data.sources.scenes import tree
from thresher.data.sources.scenes.compose import CAPTION_STREAM, Group, Ranks, Scene, draw_uniforms
from thresher.data.sources.scenes.settings import Scenes, slots_of

NUMBERS = ("a", "two", "three")
VOWELS = tuple("aeiou")


class Captioner:
    """Captions any scene; caption `number` of a record is the same however many captions there are."""

    def __init__(self, settings: Scenes) -> None:
        self._settings = settings
        self._moods = Ranks(len(tree.MOODS), settings.zipf_exponent)
        self._styles = Ranks(len(tree.STYLES), settings.zipf_exponent)
        self._templates: dict[frozenset[str], list[str]] = {}
        for template in settings.templates:
            self._templates.setdefault(slots_of(template), []).append(template)

    def caption(self, scene: Scene, index: int, number: int) -> Text:
        """Caption `number` of record `index`, with the concepts that it states."""
        uniforms = draw_uniforms(self._settings.seed, index, CAPTION_STREAM + number, 40)
        stated: list[str] = []
        words = {"mood": self._draw_mood(uniforms, stated), "style": self._draw_style(uniforms, stated)}
        slots = frozenset(["scene", *(slot for slot, word in words.items() if word)])
        forms = self._templates[slots]
        form = forms[int(next(uniforms) * len(forms))]
        text = form.format(scene=self._describe(scene, uniforms, stated), **words)
        return Text(_mend_articles(text), tree.close(stated))

    def _draw_mood(self, uniforms: Iterator[float], stated: list[str]) -> str:
        has, rank = next(uniforms) < self._settings.mood_share, self._moods.pick(next(uniforms))
        if not has:
            return ""
        family, word = tree.MOODS[rank]
        stated.append(f"mood/{family}/{word}")
        return word

    def _draw_style(self, uniforms: Iterator[float], stated: list[str]) -> str:
        has, rank = next(uniforms) < self._settings.style_share, self._styles.pick(next(uniforms))
        if not has:
            return ""
        family, word = tree.STYLES[rank]
        stated.append(f"style/{family}/{word}")
        return word

    def _describe(self, scene: Scene, uniforms: Iterator[float], stated: list[str]) -> str:
        """The scene in words; adds to `stated` what they state."""

        def mentions() -> bool:
            return next(uniforms) < self._settings.detail

        def names_family() -> bool:
            return next(uniforms) < self._settings.family_share

        phrases = [_name_group(group, mentions, names_family, stated) for group in scene.groups]
        if len(phrases) == 1:
            return phrases[0] + _name_place([place for place in scene.places()[0] if mentions()], stated)
        swapped = next(uniforms) < 0.5
        if mentions():
            return _relate(phrases, scene, stated, "second" if swapped else "first")
        if mentions():
            phrases = [phrase + _name_place(list(place), stated) for phrase, place in zip(phrases, scene.places(), strict=True)]
        return " and ".join(reversed(phrases) if swapped else phrases)


def _name_group(group: Group, mentions: Callable[[], bool], names_family: Callable[[], bool], stated: list[str]) -> str:
    """A noun phrase such as `two small red squares`."""
    is_plural = group.count > 0
    words = [NUMBERS[group.count]]
    if is_plural and names_family():
        words, _ = ["several"], stated.append("count/several")
    else:
        stated.append(f"count/{tree.COUNTS[group.count]}")
    if mentions():
        words.append(tree.SIZES[group.size])
        stated.append(f"size/{tree.SIZES[group.size]}")
    if mentions():
        family, leaf = tree.COLOURS[group.colour]
        by_family = names_family()
        words.append(family if by_family else leaf)
        stated.append(f"colour/{family}" if by_family else f"colour/{family}/{leaf}")
    words.append(_name_shape(group, mentions, names_family, stated))
    return " ".join(words) if not is_plural else _pluralize(" ".join(words))


def _name_shape(group: Group, mentions: Callable[[], bool], names_family: Callable[[], bool], stated: list[str]) -> str:
    if not mentions():
        return "thing"
    family, leaf = tree.SHAPES[group.shape]
    if names_family():
        stated.append(f"shape/{family}")
        return "round shape" if family == "round" else family
    stated.append(f"shape/{family}/{leaf}")
    return leaf


def _name_place(places: list[str], stated: list[str]) -> str:
    """` at the top left` and the like, with its leading space; empty for no place."""
    stated.extend(places)
    words = [place.rpartition("/")[2] for place in places]
    if not words:
        return ""
    if words == ["centre"]:
        return " in the centre"
    return f" {'on' if words[0] in ('left', 'right') else 'at'} the {' '.join(words)}"


def _relate(phrases: list[str], scene: Scene, stated: list[str], subject: str) -> str:
    """Say how the groups stand to each other, beginning with the first or the second."""
    stated.append(tree.BESIDE if scene.is_beside else tree.STACKED)
    first, second = phrases
    if subject == "first":
        return f"{first} {'left of' if scene.is_beside else 'above'} {second}"
    return f"{second} {'right of' if scene.is_beside else 'below'} {first}"


def _pluralize(phrase: str) -> str:
    return phrase + ("es" if phrase.endswith("cross") else "s")


def _mend_articles(text: str) -> str:
    words = text.split()
    for place in range(len(words) - 1):
        if words[place] == "a" and words[place + 1].startswith(VOWELS):
            words[place] = "an"
    return " ".join(words)
