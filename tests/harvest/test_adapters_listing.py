"""What a model's hook points are listed as."""

from pathlib import Path

from typer.testing import CliRunner

from thresher.cli import app
from thresher.harvest.adapters.base import HookPoint
from thresher.harvest.listing import group_blocks


def test_blocks_of_one_shape_are_one_row(open_clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "harvest.yaml").write_text(
        f"out: store\nmodel: {{kind: open-clip, name: 'local-dir:{open_clip_folder}'}}\n"
        "source: {kind: scenes, n_records: 1}\nhook_points: [vision.0]\ndevice: cpu\n"
    )
    found = CliRunner().invoke(app, ["hooks", str(tmp_path / "harvest.yaml")])
    lines = [line.split() for line in found.output.splitlines()]
    assert found.exit_code == 0
    assert ["vision.0-1.neurons", "image.tokens", "128"] in lines
    assert ["text.embed", "text.items", "24"] in lines
    assert not (tmp_path / "store").exists()


def test_blocks_of_other_widths_or_with_gaps_are_told_apart() -> None:
    points = [HookPoint(f"text.{i}", "text", "tokens", 8 if i < 3 else 16, is_overwritten=False) for i in (0, 1, 2, 3, 5)]
    assert [row["hook points"] for row in group_blocks(points)] == ["text.0-2", "text.3,5"]
