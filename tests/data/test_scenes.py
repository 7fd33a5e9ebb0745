"""Laws of the scenes world."""

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thresher.config import to_dict, validate
from thresher.data.records import Record, Source
from thresher.data.sources.scenes import Scenes, ScenesSource
from thresher.data.sources.scenes.captions import Captioner
from thresher.data.sources.scenes.compose import Composer, preferred_colour
from thresher.data.sources.scenes.draw import Painter
from thresher.data.sources.scenes.settings import TEMPLATES
from thresher.data.sources.scenes.tree import COLOURS, CONCEPTS, SHAPES, TEXTURES, close
from thresher.errors import ConfigError

Fields = dict[str, Any]

few = settings(deadline=None, max_examples=15)
shares = st.sampled_from([0.0, 0.3, 1.0])
worlds = st.fixed_dictionaries(
    {
        "n_records": st.just(1_000_000),
        "seed": st.integers(0, 2**40),
        "image_size": st.sampled_from([16, 33, 48]),
        "captions_per_image": st.integers(1, 3),
        "max_groups": st.integers(1, 2),
        "texture_share": shares,
        "mood_share": shares,
        "style_share": shares,
        "zipf_exponent": st.sampled_from([0.0, 0.5, 2.0]),
        "cooccurrence": shares,
        "detail": shares,
        "family_share": shares,
    }
)
"""Fields, not settings: what checks types in tests draws random numbers, which hypothesis forbids in a strategy."""
starts = st.integers(0, 999_990)


def as_bytes(record: Record) -> tuple[object, ...]:
    assert record.image is not None
    assert not isinstance(record.image, tuple)
    return record.key, record.image.mode, record.image.size, record.image.tobytes(), record.image_concepts, record.texts


def names(indices: tuple[int, ...]) -> set[str]:
    return {CONCEPTS[index].name for index in indices}


def singular(word: str) -> str:
    return word.removesuffix("es") if word == "crosses" else word if word == "cross" else word.removesuffix("s")


def with_visibility(*visibilities: str) -> set[int]:
    return {index for index, concept in enumerate(CONCEPTS) if concept.visibility in visibilities}


@few
@given(worlds, starts)
def test_a_record_depends_on_its_number_and_not_on_where_reading_began(world: Fields, start: int) -> None:
    source, again = ScenesSource(Scenes(**world)), ScenesSource(Scenes(**world))
    together = [as_bytes(record) for record in source.records(start, start + 4)]
    apart = [as_bytes(next(again.records(start + offset))) for offset in (3, 1, 0, 2)]
    assert together == [apart[2], apart[1], apart[3], apart[0]]


@few
@given(worlds, starts)
def test_concept_sets_are_ascending_and_hold_every_ancestor(world: Fields, start: int) -> None:
    for record in ScenesSource(Scenes(**world)).records(start, start + 5):
        for indices in (record.image_concepts, *(text.concepts for text in record.texts)):
            assert list(indices) == sorted(set(indices))
            assert close(CONCEPTS[index].name for index in indices) == indices


@few
@given(worlds, starts)
def test_a_caption_states_only_what_its_image_shows_or_what_no_image_can(world: Fields, start: int) -> None:
    for record in ScenesSource(Scenes(**world)).records(start, start + 5):
        assert set(record.image_concepts) <= with_visibility("shared", "image")
        for text in record.texts:
            assert set(text.concepts) <= set(record.image_concepts) & with_visibility("shared") | with_visibility("text")


@few
@given(worlds, starts)
def test_the_words_of_a_caption_are_its_concepts(world: Fields, start: int) -> None:
    roots = ("shape", "colour", "mood", "style", "count")
    leaves = [concept.name for concept in CONCEPTS if concept.name.count("/") == 2 and concept.name.startswith(roots)]
    for record in ScenesSource(Scenes(**world)).records(start, start + 5):
        for text in record.texts:
            words = {singular(word) for word in text.text.split()}
            assert {leaf for leaf in leaves if leaf.rpartition("/")[2] in words} == names(text.concepts) & set(leaves)


@few
@given(worlds, starts, shares)
def test_what_only_images_show_changes_no_caption(world: Fields, start: int, share: float) -> None:
    changed = world | {"texture_share": share}
    for one, other in zip(
        *(ScenesSource(Scenes(**fields)).records(start, start + 4) for fields in (world, changed)), strict=True
    ):
        assert one.texts == other.texts
        only_image = with_visibility("image")
        assert set(one.image_concepts) - only_image == set(other.image_concepts) - only_image


@few
@given(worlds, starts, shares, shares, st.integers(1, 3))
def test_what_only_captions_state_changes_no_pixel(world: Fields, start: int, mood: float, style: float, n: int) -> None:
    changed = world | {"mood_share": mood, "style_share": style, "captions_per_image": n, "detail": 0.5}
    for one, other in zip(
        *(ScenesSource(Scenes(**fields)).records(start, start + 4) for fields in (world, changed)), strict=True
    ):
        assert as_bytes(one)[:5] == as_bytes(other)[:5]


def test_more_captions_keep_the_first_ones() -> None:
    one, three = (ScenesSource(Scenes(captions_per_image=n)) for n in (1, 3))
    for short, long in zip(one.records(0, 50), three.records(0, 50), strict=True):
        assert long.texts[:1] == short.texts
        assert len(long.texts) == 3


PARTS = {"shape": 12, "colour": 8, "size": 2, "count": 3}


@pytest.mark.parametrize("part", [*PARTS, "background", "texture"])
def test_a_change_of_what_is_shown_changes_the_picture(part: str) -> None:
    composer, painter = Composer(Scenes()), Painter(48)
    for index in range(20):
        scene = composer.compose(index)
        if part == "background":
            other = replace(scene, background=(scene.background + 1) % 6)
        elif part == "texture":
            other = replace(scene, texture=None if scene.texture is not None else 0)
        else:
            group = replace(scene.groups[0], **{part: (getattr(scene.groups[0], part) + 1) % PARTS[part]})
            other = replace(scene, groups=(group, *scene.groups[1:]))
        assert painter.paint(scene).tobytes() != painter.paint(other).tobytes()


def test_the_first_record_is_what_it_was() -> None:
    """Written by hand from the picture and its caption: stores and checkpoints rely on it."""
    record = next(ScenesSource(Scenes(n_records=1)).records())
    assert record.key == "scene-000000000"
    assert record.texts[0].text == "this shows two large pink ellipses and a large cyan arrow"
    assert {"shape/round/ellipse", "relation/beside", "background/dark/black", "texture/lined/striped"} <= names(
        record.image_concepts
    )


def test_keys_are_unique_and_the_end_is_kept() -> None:
    source = ScenesSource(Scenes(n_records=300, image_size=16))
    keys = [record.key for record in source.records()]
    assert len(source) == len(keys) == len(set(keys)) == 300
    assert [record.key for record in source.records(295, 900)] == keys[295:]


def test_settings_and_only_settings_decide_the_fingerprint() -> None:
    worlds = [
        Scenes(),
        Scenes(seed=1),
        Scenes(n_records=5),
        Scenes(detail=0.5),
        Scenes(templates=TEMPLATES[:12] + TEMPLATES[:1]),
    ]
    with pytest.raises(ConfigError, match="mood and style"):
        Scenes(templates=TEMPLATES[:10])
    digests = [ScenesSource(world).fingerprint for world in worlds]
    assert len(set(digests)) == len(worlds)
    assert ScenesSource(validate(Scenes, to_dict(Scenes()), "here")).fingerprint == digests[0]


def test_the_tree_is_sound() -> None:
    source = ScenesSource(Scenes())
    assert isinstance(source, Source)
    by_name = {concept.name: concept for concept in source.concepts}
    assert len(by_name) == len(source.concepts) >= 45
    for concept in source.concepts:
        if concept.parent is not None:
            assert by_name[concept.parent].visibility == concept.visibility
            assert concept.name.startswith(concept.parent + "/")


def presence(world: Scenes, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which concepts the first `n` images show and their first captions state, without drawing."""
    composer, captioner = Composer(world), Captioner(world)
    shown, stated = np.zeros((n, len(CONCEPTS)), bool), np.zeros((n, len(CONCEPTS)), bool)
    for index in range(n):
        scene = composer.compose(index)
        shown[index, list(scene.concepts())] = True
        stated[index, list(captioner.caption(scene, index, 0).concepts)] = True
    return shown, stated


def column(name: str) -> int:
    return next(index for index, concept in enumerate(CONCEPTS) if concept.name == name)


N = 2500
"""Draws; a share of 0.3 then has a standard deviation of 0.009, and 0.04 is more than four of them."""


def test_frequencies_follow_the_settings() -> None:
    world = Scenes(
        max_groups=1, texture_share=0.3, mood_share=0.6, style_share=0.2, zipf_exponent=1.0, cooccurrence=0.25, seed=3
    )
    shown, stated = presence(world, N)
    assert abs(shown[:, [column("texture/lined"), column("texture/patterned")]].any(axis=1).mean() - 0.3) < 0.04
    assert shown[:, [column("background/light"), column("background/dark")]].any(axis=1).all()
    assert abs(stated[:, [column("mood/bright"), column("mood/sombre")]].any(axis=1).mean() - 0.6) < 0.04
    assert abs(stated[:, [column("style/drawn"), column("style/printed")]].any(axis=1).mean() - 0.2) < 0.04
    weights = {size: (1 / np.arange(1, size + 1)) / (1 / np.arange(1, size + 1)).sum() for size in (6, 8, 12)}
    for rank, (family, leaf) in enumerate(SHAPES):
        assert abs(shown[:, column(f"shape/{family}/{leaf}")].mean() - weights[12][rank]) < 0.04
    for rank, (family, leaf) in enumerate(TEXTURES):
        assert abs(shown[:, column(f"texture/{family}/{leaf}")].mean() - 0.3 * weights[6][rank]) < 0.04
    for rank, (family, leaf) in enumerate(COLOURS):
        preferred = sum(weights[12][shape] for shape in range(12) if preferred_colour(shape) == rank)
        expected = 0.75 * weights[8][rank] + 0.25 * preferred
        assert abs(shown[:, column(f"colour/{family}/{leaf}")].mean() - expected) < 0.04


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_cooccurrence_is_the_share_of_preferred_colours(strength: float) -> None:
    composer = Composer(Scenes(max_groups=1, cooccurrence=strength, zipf_exponent=0.0))
    groups = [composer.compose(index).groups[0] for index in range(N)]
    share = np.mean([group.colour == preferred_colour(group.shape) for group in groups])
    assert abs(share - (strength + (1 - strength) / len(COLOURS))) < 0.04


@pytest.mark.parametrize("detail", [0.3, 0.9])
def test_detail_is_the_share_of_mentions_and_families_take_theirs(detail: float) -> None:
    shown, stated = presence(Scenes(max_groups=1, detail=detail, family_share=0.25), N)
    colours = [column("colour/warm"), column("colour/cool")]
    leaves = [column(f"colour/{family}/{leaf}") for family, leaf in COLOURS]
    assert abs(stated[:, colours].any(axis=1).mean() - detail) < 0.04
    assert abs(stated[:, leaves].any(axis=1).mean() - 0.75 * detail) < 0.04
    assert shown[:, leaves].any(axis=1).all()


def test_different_seeds_give_different_records() -> None:
    first, second = (ScenesSource(Scenes(seed=seed, image_size=16)) for seed in (0, 1))
    pairs = zip(first.records(0, 20), second.records(0, 20), strict=True)
    assert sum(as_bytes(one) == as_bytes(other) for one, other in pairs) == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n_records": 0}, "n_records=0"),
        ({"max_groups": 3}, "max_groups=3"),
        ({"detail": 1.5}, "detail=1.5"),
        ({"texture_share": -0.1}, "texture_share=-0.1"),
        ({"zipf_exponent": 9.0}, "zipf_exponent=9.0"),
        ({"image_size": 8}, "image_size=8"),
        ({"templates": ("{scene} {place}",)}, "{place}"),
        ({"templates": ("a {mood} day",)}, "a {mood} day"),
        ({"templates": ("{scene",)}, "{scene"),
        ({"templates": ()}, "templates"),
        ({"templates": TEMPLATES[:10]}, "mood and style"),
    ],
)
def test_a_world_that_cannot_be_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        validate(Scenes, fields, "here")


def test_own_templates_are_used() -> None:
    source = ScenesSource(Scenes(templates=("behold {scene}",), mood_share=0.0, style_share=0.0, image_size=16))
    assert all(record.texts[0].text.startswith("behold ") for record in itertools.islice(source.records(), 20))
