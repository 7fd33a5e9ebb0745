"""Laws of configurations: every mistake at once, by dotted path, with the nearest valid name."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest

from thresher.config import config, describe, dump_config, load_config, validate
from thresher.errors import ConfigError


@config
class Pursuit:
    """One kind."""

    kind: Literal["pursuit"] = "pursuit"
    """Which kind."""
    k: int = 8
    """Atoms per code."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k={self.k}: pick at least 1")


@config
class Threshold:
    """Another kind."""

    kind: Literal["threshold"] = "threshold"
    """Which kind."""
    penalty: float = 0.1
    """Weight of the
    penalty."""


@config
class Job:
    """A job."""

    sae: Annotated[Pursuit | Threshold, pydantic.Field(discriminator="kind")]
    """What to fit."""
    out: Path = Path("runs")
    """Where to."""
    members: dict[str, Pursuit] = field(default_factory=dict)
    """More of them."""
    points: tuple[str, ...] = ()
    """Names."""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Job, write(folder, text), overrides)
    return str(caught.value)


def test_a_valid_file_becomes_a_frozen_config(tmp_path: Path) -> None:
    job = load_config(Job, write(tmp_path, "sae: {kind: pursuit, k: 3}\npoints: [a, b]\n"))
    assert job == Job(sae=Pursuit(k=3), points=("a", "b"))
    with pytest.raises(AttributeError):
        job.out = Path("elsewhere")


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    job = load_config(Job, write(tmp_path, "sae: {kind: pursuit}\n"), ["sae.k=5", "members.a.k=2", "out=there"])
    assert job == Job(sae=Pursuit(k=5), members={"a": Pursuit(k=2)}, out=Path("there"))


def test_all_mistakes_are_reported_together_with_paths_and_nearest_names(tmp_path: Path) -> None:
    found = message(tmp_path, "sae: {kind: pursuit, kk: 2, k: x}\nmembers: {a: {k: 0}}\nouut: here\n")
    assert "4 mistake(s)" in found
    assert "sae.kk: unknown field; did you mean 'k'?" in found
    assert "sae.k: input should be a valid integer" in found
    assert "found 'x'" in found
    assert "members.a: k=0: pick at least 1" in found
    assert "ouut: unknown field; did you mean 'out'?" in found


def test_an_unknown_kind_lists_the_known_ones(tmp_path: Path) -> None:
    found = message(tmp_path, "sae: {kind: persuit}\n")
    assert "sae.kind: unknown kind 'persuit'" in found
    assert "'threshold'" in found
    assert "did you mean 'pursuit'?" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sae: {}\n", "sae.kind: required field is missing"),
        ("", "sae: required field is missing"),
        ("- a\n", "expected a mapping"),
        ("sae: [\n", "not valid YAML"),
        ("sae: {kind: pursuit}\nout: a\nout: b\n", "'out' is there twice"),
        ("sae: pursuit\n", "sae: expected a group of fields"),
        ("sae: {kind: pursuit}\npoints: a\n", "points: expected a list"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(tmp_path, text)


@pytest.mark.parametrize("override", ["sae", "=3", "sae.=3", "sae.kind.deep=3", "points.7=a"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    assert "override" in message(tmp_path, "sae: {kind: pursuit}\npoints: [a]\n", override)


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    made = load_config(Job, write(tmp_path, "sae: {kind: pursuit}\nout: ~/runs\npoints: [a~/b]\n"))
    assert (made.out, made.points) == (Path("/home/somebody/runs"), ("a~/b",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read"):
        load_config(Job, tmp_path / "nowhere.yaml")


def test_a_config_written_out_reads_back_equal(tmp_path: Path) -> None:
    job = Job(sae=Threshold(penalty=0.25), members={"a": Pursuit()}, points=("x",))
    assert load_config(Job, write(tmp_path, dump_config(job))) == job


def test_help_has_every_field_with_its_docstring() -> None:
    docs = {field.path: field for field in describe(Job)}
    assert docs["sae[kind=threshold].penalty"].doc == "Weight of the penalty."
    assert docs["sae[kind=pursuit].k"].default == "8"
    assert docs["members.<name>.k"].doc == "Atoms per code."
    assert docs["sae"].default == ""


@config
class Choice:
    """A field of several types."""

    of: Literal["a", "b"] | Annotated[Path, "checked"] | None = None


def test_help_names_what_a_field_of_several_types_takes() -> None:
    assert next(iter(describe(Choice))).type == "'a' | 'b' | Path | None"


def test_a_mistake_in_code_is_refused_like_one_in_a_file() -> None:
    with pytest.raises(ConfigError, match="k=0"):
        Pursuit(k=0)
    with pytest.raises(ConfigError, match="sae: required"):
        validate(Job, {}, "here")
