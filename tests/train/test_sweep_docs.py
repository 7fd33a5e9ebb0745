"""Every code block of docs/sweeps.md works as written."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thresher.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sweeps.md"


def test_every_block_of_the_page_runs(
    make_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On planted rows in the place of those of the demo."""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    make_store(600, name="runs/demo/store")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["yaml", "sh", "python"]
    (tmp_path / "sweep.yaml").write_text(blocks[0][1], encoding="utf-8")
    program, *arguments = shlex.split(blocks[1][1])
    assert program == "thresher"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    exec(compile(blocks[2][1], str(PAGE), "exec"), {"__name__": "__main__"})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{name}-l0=4-d_sae=64-seed={seed}" for name in ("mp", "topk") for seed in (0, 1)
    ]
    table = (tmp_path / "runs" / "sweep" / "table.md").read_text(encoding="utf-8")
    assert "| mp-l0=4-d_sae=64 |" in table
    assert "At equal time" in table
