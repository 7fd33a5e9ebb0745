"""The tables of an analysis equal plain formulas of docs/analysis.md: unpaired items, many rows per item, signed codes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from thresher.analyze.battery.study import examine, prepare
from thresher.analyze.config import AnalyzeConfig
from thresher.analyze.evaluate import evaluate_reconstruction
from thresher.analyze.inputs import open_inputs
from thresher.analyze.measure import measure
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.panels import open_panels
from thresher.analyze.results import plain
from thresher.analyze.truth import one_per_record
from thresher.config import validate
from thresher.data.store import Batch, HookPointSpec, Item, Rows, StoreWriter, open_store
from thresher.train.arch import build
from thresher.train.checkpoint import TrainedSAE, load_sae, save_sae
from thresher.train.codes import densify
from thresher.train.config import TrainConfig
from thresher.train.normalize import Normalizer

D_IN, M, RECORDS, RARE_BELOW = 16, 32, 60, 6
DENSE, DEAD = 30, 31
HOOKS = {"image": "vision.1", "text": "text.1"}
Analyses = dict[str, SimpleNamespace]
KINDS = {
    "mp": {"kind": "mp", "d_sae": M, "k": 6, "sign": "abs"},
    "topk": {"kind": "topk", "d_sae": M, "k": 5},
    "jumprelu": {"kind": "jumprelu", "d_sae": M},
}


def write_store(path: Path, atoms: np.ndarray) -> Path:
    """Ten shared concepts, six of each modality, a bridge (22, 23); up to five captions, rows and items without a partner."""
    generator = np.random.default_rng(0)
    items: dict[Any, list[Item]] = {"image": [], "text": []}
    rows: dict[str, list[tuple[int, int, np.ndarray]]] = {"image": [], "text": []}
    pairs: list[tuple[int, int]] = []

    def add(modality: str, key: str, record: int, n_rows: int, concepts: list[int]) -> int:
        item = len(items[modality])
        is_readable = record % 23 != 2 or modality == "text"
        text = None if modality == "image" else key
        items[modality].append(Item(key, record, "ok" if is_readable else "unreadable: no", text, None, ()))
        for position in range(n_rows if is_readable else 0):
            z = np.zeros(M)
            z[concepts] = (generator.exponential(size=len(concepts)) + 0.5) * (generator.random(len(concepts)) < 0.8)
            rows[modality].append((item, position, z @ atoms + 0.02 * generator.normal(size=D_IN)))
        return item

    for record in range(RECORDS):
        shared = np.flatnonzero(generator.random(10) < 0.25).tolist()
        has_bridge, image = generator.random() < 0.3, None
        if record % 17 != 3:
            own = np.flatnonzero(generator.random(6) < 0.3) + 10
            image = add("image", f"{record}", record, 1 + record % 4, [*shared, *own.tolist(), 24, *([22] * has_bridge)])
        for caption in range(0 if record % 13 == 5 else (5 if record % 7 else 2)):
            own = np.flatnonzero(generator.random(6) < 0.3) + 16
            concepts = [*shared, *own.tolist(), *([23] * has_bridge)]
            text = add("text", f"{record}#{caption}", record, 1 + (record + caption) % 3, concepts)
            if image is not None and (record + caption) % 11:
                pairs.append((image, text))
    spaces = {}
    for modality, found in rows.items():
        item, position, x = (np.array(column) for column in zip(*found, strict=True))
        token = torch.zeros(len(item), dtype=torch.int32) if modality == "text" else None
        activations = {HOOKS[modality]: torch.from_numpy(x).float()}
        spaces[f"{modality}.tokens"] = Rows(torch.from_numpy(item), torch.from_numpy(position).int(), token, activations)
    specs = [HookPointSpec(HOOKS[name], name, f"{name}.tokens", D_IN, "float32") for name in ("image", "text")]
    with StoreWriter(path, {"model": {"kind": "given"}, "source": {"kind": "given"}}, specs, ()) as writer:
        writer.write(Batch(0, items, pairs, spaces))
        writer.finish()
    return path


def write_sae(store: Path, out: Path, kind: str, atoms: np.ndarray) -> Path:
    """A dictionary near the true atoms, with a bias, means and scales of its own, a dense and a dead feature."""
    generator = np.random.default_rng(1)
    values = {"store": str(store), "out": str(out), "hook_points": list(HOOKS.values()), "sae": KINDS[kind]}
    config, opened = validate(TrainConfig, values, "test"), open_store(store)
    sae: Any = build(config.sae, D_IN, 0)
    near = atoms + 0.1 * generator.normal(size=atoms.shape)
    with torch.no_grad():
        sae.dictionary.copy_(torch.from_numpy(near / np.linalg.norm(near, axis=1, keepdims=True)))
        sae.bias.copy_(torch.from_numpy(0.1 * generator.normal(size=D_IN)))
        if kind != "mp":
            sae.encoder.copy_(sae.dictionary)
            sae.encoder_bias.fill_(-0.5)
            sae.encoder_bias[DENSE], sae.encoder_bias[DEAD] = 1.5, -100
        if kind == "jumprelu":
            sae.log_threshold.fill_(float(np.log(0.8)))
    mean = torch.from_numpy(0.05 * generator.normal(size=(2, D_IN))).float()
    normalizer = Normalizer(False, mean, torch.tensor([1.0, 1.4]))
    save_sae(out, TrainedSAE(sae, normalizer, config, opened.fingerprint, opened.identity, {}, 1, True))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store, dictionaries, and embeddings that judge meaning."""
    path, generator = tmp_path_factory.mktemp("oracle"), np.random.default_rng(2)
    atoms = generator.normal(size=(M, D_IN))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    store = write_store(path / "store", atoms)
    topics = generator.normal(size=(RECORDS, 6))
    for name in HOOKS:
        record = open_store(store).items(name, ["record"])["record"].to_numpy()
        np.save(path / f"{name}.npy", topics[record] + 0.7 * generator.normal(size=(len(record), 6)) + 1)
    for kind in KINDS:
        write_sae(store, path / kind, kind, atoms)
    return path


@pytest.fixture(scope="module")
def analyses(folder: Path) -> Analyses:
    """What the pipeline finds: tables, groups and reconstruction of each dictionary. No report, no figures."""
    external = {name: str(folder / f"{name}.npy") for name in HOOKS}
    battery = {"external": external, "calibration_pairs": 0, "n_derangements": 0, "ess_below": 5.0}
    values = {"store": folder / "store", "saes": {kind: folder / kind for kind in KINDS}, "out": folder / "out", "rows": "all"}
    values |= HOOKS | {
        "n_bootstrap": 20,
        "figures": "none",
        "chunk_rows": 64,
        "battery": battery,
        "thresholds": {"rare_below": RARE_BELOW},
    }
    config = validate(AnalyzeConfig, values, "test")
    inputs, resample = open_inputs(config), Resample(config.n_bootstrap, config.seed)
    panels = open_panels(inputs.store, list(inputs.hook_points.values()), inputs.holdout, inputs.seed, None)
    study, found = prepare(config, inputs, panels, resample), {}
    assert study is not None
    for kind, trained in inputs.saes.items():
        measured = {
            name: measure(trained, inputs.store, panel, resample, config.chunk_rows, lambda _: None)
            for name, panel in panels.items()
        }
        finding = examine(study, kind, inputs, panels, measured, None)
        tables = {name.removesuffix(".parquet"): table for name, table in finding.tables.items()}
        reconstruction = plain(evaluate_reconstruction(measured))
        found[kind] = SimpleNamespace(groups=finding.groups, reconstruction=reconstruction, **tables)
    return found


def read(folder: Path, kind: str) -> SimpleNamespace:
    """Codes of all rows (Z) and items (z), dense float64; which features fire on which item; the pairs."""
    store, trained = open_store(folder / "store"), load_sae(folder / kind)
    found = SimpleNamespace(atoms=trained.sae.dictionary.detach().double().numpy(), trained=trained)
    for name in ("codes", "Z", "record_of_row", "z", "fires", "items", "record", "x", "x_hat"):
        setattr(found, name, {})
    for index, (name, hook) in enumerate(HOOKS.items()):
        record, item = store.items(name, ["record"])["record"].to_numpy(), store.item_of(hook)
        x = store.read_rows(hook, np.arange(len(item))).float()
        found.codes[name] = trained.encode(x, hook)
        z = found.Z[name] = densify(found.codes[name], M).double().numpy()
        found.items[name] = np.unique(item)
        found.record_of_row[name], found.record[name] = record[item], record[found.items[name]]
        found.z[name] = np.array([z[item == one].mean(0) for one in found.items[name]])
        found.fires[name] = np.array([(z[item == one] != 0).any(0) for one in found.items[name]])
        found.x[name] = x.double().numpy()
        given = z @ found.atoms + trained.sae.bias.detach().double().numpy()
        mean, scale = trained.normalizer.mean[index].double().numpy(), float(trained.normalizer.scale[index])
        found.x_hat[name] = given / scale + mean
    pairs = store.pairs()
    kept = np.isin(pairs[:, 0], found.items["image"]) & np.isin(pairs[:, 1], found.items["text"])
    ends = [np.searchsorted(found.items[name], pairs[kept, side]) for side, name in enumerate(HOOKS)]
    found.pairs = np.column_stack(ends)
    return found


def measure_rows(o: SimpleNamespace) -> dict[str, np.ndarray]:
    """Levels 0 and 1."""
    found: dict[str, np.ndarray] = {"n_negative": sum((z < 0).sum(0) for z in o.Z.values())}
    for name, z in o.Z.items():
        found |= {f"n_fire_{name}": (z != 0).sum(0), f"rate_{name}": (z != 0).mean(0)}
        found |= {f"energy_{name}": (z**2).mean(0), f"mean_{name}": z.mean(0)}
        found[f"n_record_{name}"] = np.array([len(set(o.record_of_row[name][z[:, i] != 0])) for i in range(M)])
    z = np.concatenate(list(o.z.values()))
    found["ess"] = (z**2).sum(0) ** 2 / (z**4).sum(0)
    for score, kind in (("mu_energy", "energy"), ("mu_count", "rate"), ("mu_mean", "mean")):
        found[score] = found[f"{kind}_image"] / (found[f"{kind}_image"] + found[f"{kind}_text"])
    if found["n_negative"].any():
        found["mu_mean"] = np.full(M, np.nan)
    return found


def measure_pairs(o: SimpleNamespace) -> tuple[dict[str, np.ndarray], SimpleNamespace]:
    """Level 2 without its tests and partners, level 4, and the matrices [image feature, text feature] behind them."""
    image, text = (o.z[name][o.pairs[:, side]] for side, name in enumerate(HOOKS))
    on_image, on_text = (o.fires[name][o.pairs[:, side]] for side, name in enumerate(HOOKS))
    products = image.T @ text / len(image)
    covariance = products - np.outer(image.mean(0), text.mean(0))
    bridge = covariance * (o.atoms @ o.atoms.T)
    total, own = bridge.sum(), np.diag(bridge)
    rho = covariance / np.outer(image.std(0), text.std(0))
    both = (on_image & on_text).sum(0)
    found = {"n_pair_image": on_image.sum(0), "n_pair_text": on_text.sum(0), "n_pair_both": both, "rho": np.diag(rho)}
    found |= {"jaccard": both / (on_image | on_text).sum(0), "lift": both * len(image) / (on_image.sum(0) * on_text.sum(0))}
    found |= {"margin_row": bridge.sum(1) / total, "margin_column": bridge.sum(0) / total, "margin_self": own / total}
    found["margin_loo"] = (bridge.sum(1) + bridge.sum(0) - own) / total
    images = [o.pairs[:, 0] == one for one in np.unique(o.pairs[:, 0])]
    fired = [np.array([part[of].any(0) for of in images]).astype(int) for part in (on_image, on_text)]
    return found, SimpleNamespace(A=products, rho=rho, Bc=bridge / total, total=total, count=fired[0].T @ fired[1])


def measure_gap(o: SimpleNamespace) -> dict[str, np.ndarray]:
    """Where the gap between the means of all items lies."""
    difference = o.z["image"].mean(0) - o.z["text"].mean(0)
    delta = difference @ o.atoms
    along = o.atoms @ delta / np.linalg.norm(delta)
    return {"gap_cosine": np.abs(along), "gap_share": difference * along / np.linalg.norm(delta)}


def measure_meaning(o: SimpleNamespace, folder: Path) -> dict[str, np.ndarray]:
    """Double sums over different records, one image and one caption of each."""
    places = {name: np.searchsorted(np.unique(np.concatenate(list(o.record.values()))), o.record[name]) for name in HOOKS}
    chosen = {name: one_per_record(places[name], 0) for name in HOOKS}
    both = np.intersect1d(*(o.record[name][chosen[name]] for name in HOOKS))
    e, a, found = {}, {}, {}
    for name in HOOKS:
        items = np.array([next(i for i in chosen[name] if o.record[name][i] == one) for one in both])
        vectors = np.load(folder / f"{name}.npy")[o.items[name]][items]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors -= vectors.mean(0)
        e[name], a[name] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.abs(o.z[name][items])
    for column, (one, other) in {"ms_image": ("image",) * 2, "ms_text": ("text",) * 2, "mms": ("image", "text")}.items():
        cosine, found[column] = e[one] @ e[other].T, np.full(M, np.nan)
        for i in range(M):
            weight = np.outer(a[one][:, i], a[other][:, i])
            np.fill_diagonal(weight, 0)
            if weight.any():
                found[column][i] = (weight * cosine).sum() / weight.sum()
    with np.errstate(invalid="ignore"):
        is_about = (found["ms_image"] > 0) & (found["ms_text"] > 0)
        agreement = found["mms"] / np.sqrt(np.where(is_about, found["ms_image"] * found["ms_text"], np.nan))
    return found | {"agreement": np.clip(agreement, -1, 1)}


def column(table: Any, name: str) -> np.ndarray:
    return np.array([np.nan if one is None else one for one in table[name].to_pylist()], dtype=float)


def same(found: Any, expected: Any, name: str) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_equal_plain_sums_over_rows_items_and_pairs(folder: Path, analyses: Analyses, kind: str) -> None:
    o, table, groups = read(folder, kind), analyses[kind].features, analyses[kind].groups
    edges = analyses[kind].edges.to_pydict()
    with np.errstate(divide="ignore", invalid="ignore"):
        pair_columns, matrices = measure_pairs(o)
        expected = measure_rows(o) | pair_columns | measure_gap(o) | measure_meaning(o, folder)
    for name, values in expected.items():
        same(column(table, name), values, name)
    i, j = np.array(edges["i"]), np.array(edges["j"])
    for name in ("rho", "A", "Bc", "count"):
        same(edges[name], getattr(matrices, name)[i, j], name)
    check_partners(table, i, j, edges["mutual"], matrices)
    classes = np.array(table["class"].to_pylist())
    for name, shares in (("gap", expected["gap_share"]), ("energy_image", None), ("energy_text", None)):
        values = expected[name] / expected[name].sum() if shares is None else shares
        same([one["value"] for one in groups[name].values()], [values[classes == one].sum() for one in groups[name]], name)
    assert groups["margin"]["total"]["value"] == pytest.approx(matrices.total, rel=1e-6)
    for name, one in groups["margin_by_class"].items():
        rest = np.ix_(classes != name, classes != name)
        same(one["value"], 1 - matrices.Bc[rest].sum(), name)


def check_partners(table: Any, i: np.ndarray, j: np.ndarray, mutual: list[bool], matrices: SimpleNamespace) -> None:
    """The best of those that fire on enough records of their side, and the eight strongest of each."""
    is_tested = ~np.isin(table["status"].to_pylist(), ("dead", "rare"))
    on = [is_tested & (column(table, f"n_record_{name}") >= RARE_BELOW) for name in HOOKS]
    rho = np.where(np.outer(*on) & (matrices.count > 0) & (matrices.rho > 0), matrices.rho, -np.inf)
    of_image = np.where(np.isfinite(rho.max(1)), rho.argmax(1), -1)
    of_text = np.where(np.isfinite(rho.max(0)), rho.argmax(0), -1)
    assert column(table, "partner").tolist() == np.where(column(table, "mu_energy") >= 0.5, of_image, of_text).tolist()
    strongest = {(a, b) for a in range(M) for b in np.argsort(-rho[a])[:8] if rho[a, b] > 0}
    strongest |= {(a, b) for b in range(M) for a in np.argsort(-rho[:, b])[:8] if rho[a, b] > 0}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == strongest
    assert mutual == [of_image[a] == b and of_text[b] == a for a, b in zip(i, j, strict=True)]


def test_steps_have_the_atoms_that_the_pursuit_picked(folder: Path, analyses: Analyses) -> None:
    o, table, steps = read(folder, "mp"), analyses["mp"].features, analyses["mp"].steps
    classes, total = np.array(table["class"].to_pylist()), {}
    for side, (name, codes) in enumerate(o.codes.items()):
        indices, values = codes.indices.numpy(), codes.values.double().numpy()
        picks = np.eye(M)[indices] * values[:, :, None]
        energy, total[name] = (picks**2).mean(0), picks.mean(0)
        with np.errstate(invalid="ignore"):
            same(column(table, f"step_{name}"), np.arange(len(energy)) @ energy / energy.sum(0), name)
        for kind in np.unique(classes):
            found = column(steps, f"energy_{kind.replace('-', '_')}")[side::2]
            same(found, energy[:, classes == kind].sum(1) / energy.sum(1), kind)
    difference = total["image"] - total["text"]
    delta = difference.sum(0) @ o.atoms
    same(column(steps, "gap")[::2], difference @ (o.atoms @ delta) / (delta @ delta), "gap")


@pytest.mark.parametrize("kind", ["mp", "topk"])
def test_tests_of_pairing_equal_dealing_the_captions_at_random(folder: Path, analyses: Analyses, kind: str) -> None:
    o, table = read(folder, kind), analyses[kind].features
    images, generator = np.unique(o.pairs[:, 0]), np.random.default_rng(0)
    bundles = [o.pairs[o.pairs[:, 0] == one, 1] for one in images]
    a, b = o.z["image"][images], np.array([o.z["text"][one].sum(0) for one in bundles])
    beyond, n = np.zeros(M), 4000
    for _ in range(n):
        beyond += (a * b[generator.permutation(len(images))]).sum(0) >= (a * b).sum(0)
    p, drawn = column(table, "p"), beyond / n
    is_above = np.isfinite(p) & (p < 1)
    assert is_above.sum() > 10
    noise = 5 * np.sqrt(np.maximum(np.maximum(p, drawn), 1 / n) / n)
    assert (drawn - p <= noise + 0.2 * p + 0.002)[is_above].all()
    assert (p - drawn <= noise + 0.5 * p + 0.002)[is_above].all()
    # A sum of products no larger than expected is no evidence, whatever its exact rank.
    assert (drawn[p == 1] > 0.25).all()
    for name, values in (("p", p), ("partner_p", column(table, "partner_p"))):
        ranked = np.sort(values[np.isfinite(values)])
        least = [min(1, *(ranked[k] * len(ranked) / (k + 1) for k in np.flatnonzero(ranked >= one))) for one in ranked]
        found = column(table, name.replace("p", "q") if name == "p" else "partner_q")
        same(np.sort(found[np.isfinite(found)]), least, name)


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_equals_plain_means_over_rows(folder: Path, analyses: Analyses, kind: str) -> None:
    o, measured = read(folder, kind), analyses[kind].reconstruction
    for which, names in {"image": ["image"], "text": ["text"], "pooled": ["image", "text"]}.items():
        x, y, z = (np.concatenate([part[name] for name in names]) for part in (o.x, o.x_hat, o.Z))
        error, norm, length = ((x - y) ** 2).sum(1), np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
        inner, mean = (x * y).sum(1), x.mean(0)
        fvu = error.sum() / ((x - mean) ** 2).sum()
        expected = {"r2": 1 - fvu, "fvu": fvu, "nmse": (error / norm**2).mean(), "cosine": (inner / norm / length).mean()}
        expected |= {"cosine_of_mean": (x @ mean / norm / np.linalg.norm(mean)).mean(), "l0": (z != 0).sum(1).mean()}
        expected |= {"fvu_over_dimensions": ((x - y).var(1) / x.var(1)).mean(), "length_ratio": (length / norm).mean()}
        expected |= {"r2_scalar_mean": 1 - error.sum() / ((x - x.mean()) ** 2).sum(), "bias": (length**2).sum() / inner.sum()}
        assert set(measured[which]) == set(expected)
        for name, value in expected.items():
            assert measured[which][name]["value"] == pytest.approx(value, rel=1e-4), (which, name)
