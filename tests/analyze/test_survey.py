"""The laws of the survey: its files say what an independent computation from the checkpoint and the store says."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

from thresher.analyze.metrics.sharing import keep_strongest, measure_sharing
from thresher.analyze.survey.sample import ROWS_PER_ITEM, encode_sample, read_items
from thresher.data.store import open_store
from thresher.errors import AnalysisError
from thresher.train.checkpoint import load_sae

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "analysis.md"


def read_curve(report: Path, sae: str, curve: str, series: str) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(report.parent / sae / "curves.parquet").to_pydict()
    rows = [n for n in range(len(table["x"])) if (table["curve"][n], table["series"][n]) == (curve, series)]
    return np.array([table["x"][n] for n in rows]), np.array([table["y"][n] for n in rows], dtype=float)


@pytest.mark.parametrize("name", ["topk", "mp"])
def test_a_sample_is_bias_and_codes_and_reconstructs_as_the_checkpoint_does(scenes_store, scenes_saes, name: str) -> None:
    trained, store = load_sae(scenes_saes[name]), open_store(scenes_store)
    x = store.read_rows("text.embed", np.arange(20)).float()
    sample = encode_sample(trained, "text.embed", x)
    mine = sample.bias + np.einsum("rk,rkd->rd", sample.values, sample.dictionary[sample.indices])
    theirs = trained.decode(trained.encode(x, "text.embed"), "text.embed").double().numpy()
    assert mine == pytest.approx(theirs, abs=1e-4)
    atoms = trained.sae.dictionary.detach().double().numpy()
    assert sample.codes @ (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)) == pytest.approx(
        np.einsum("rk,rkd->rd", sample.values, atoms[sample.indices]), abs=1e-6
    )


def test_recovery_ends_where_the_analysis_says_and_never_worsens_for_a_pursuit(scenes_report: Path) -> None:
    metrics = json.loads((scenes_report.parent / "metrics.json").read_text())
    for side in ("image", "text"):
        k, fvu = read_curve(scenes_report, "mp", "recovery_fvu", side)
        assert k[-1] == 12
        # The sample has up to 1000 rows, which is all there are of images and most of the texts.
        assert fvu[-1] == pytest.approx(metrics["saes"]["mp"]["reconstruction"][side]["fvu"]["value"], rel=0.1)
        assert (np.diff(fvu) < 1e-9).all()
        tested, again = read_curve(scenes_report, "mp", "test_time_fvu", side)
        assert tested[-1] == 24
        # A pursuit of fewer steps is a prefix of one of more.
        assert again[np.isin(tested, k)] == pytest.approx(fvu, rel=1e-6)
        _, residual = read_curve(scenes_report, "mp", "pursuit_residual", side)
        assert (np.diff(residual) < 0).all()
    assert json.loads((scenes_report.parent / "mp" / "dictionary.json").read_text())["pursuit"]["text"]["largest_rise"] < 1e-6


def test_energy_adds_up_and_selected_atoms_are_less_alike_than_the_most_alike(scenes_report: Path) -> None:
    _, energy = read_curve(scenes_report, "topk", "energy", "text")
    assert energy[-1] == pytest.approx(1)
    assert (np.diff(energy) >= 0).all()
    sizes, babel = read_curve(scenes_report, "topk", "babel", "dictionary")
    others, selected = read_curve(scenes_report, "topk", "babel", "selected on images")
    assert set(others) <= set(sizes) | {k - 1 for k in (2, 4, 8, 12)}
    assert selected[-1] < np.interp(others[-1], sizes, babel)


def test_the_documentation_names_every_key_and_curve(scenes_report: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")

    def promised(title: str) -> set[str]:
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}

    found = json.loads((scenes_report.parent / "mp" / "dictionary.json").read_text())
    assert set(found) - {"n_atoms", "d_sae", "n_rows"} == promised("dictionary.json")
    space = json.loads((scenes_report.parent / "space.json").read_text())
    assert set(space) - {"n", "hook_points", "neighbours"} == promised("space.json")
    curves = set(pq.read_table(scenes_report.parent / "mp" / "curves.parquet")["curve"].to_pylist())
    assert curves <= promised("curves.parquet")
    assert promised("curves.parquet") - curves == {"stability"}


def test_items_that_share_features_are_compared_as_pair_by_pair() -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(9, 14)) * (generator.random((9, 14)) < 0.5)
    codes, vectors = csr_array(dense), generator.normal(size=(9, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = measure_sharing(codes, codes, vectors, vectors, 3, is_paired=True)
    tops = [set(np.argsort(-np.abs(row))[: min(3, int((row != 0).sum()))]) for row in dense]
    expected: dict[int, list[float]] = {shared: [] for shared in range(4)}
    for i in range(9):
        for j in range(9):
            if i != j:
                expected[len(tops[i] & tops[j])].append(float(vectors[i] @ vectors[j]))
    assert found.n.tolist() == [len(expected[shared]) for shared in range(4)]
    for shared, values in expected.items():
        assert not values or found.similarity[shared] == pytest.approx(np.mean(values))
    assert keep_strongest(codes, 3).sum() == sum(len(top) for top in tops)
    with pytest.raises(AnalysisError, match=r"items of codes and embeddings"):
        measure_sharing(codes, codes, vectors[:5], vectors, 3, is_paired=True)


def test_items_are_means_of_their_rows_in_the_order_asked_for(scenes_store) -> None:
    store = open_store(scenes_store)
    items = np.array([5, 2, 9])
    rows = [np.flatnonzero(store.item_of("text.embed") == item)[:ROWS_PER_ITEM] for item in items]
    expected = np.stack([store.read_rows("text.embed", one).double().numpy().mean(axis=0) for one in rows])
    assert read_items(store, "text.embed", items) == pytest.approx(expected)
