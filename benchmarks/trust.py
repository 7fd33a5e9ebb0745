"""How often 95 % intervals hold the truth, and how often p-values of pairing call dealt captions a pair.

Usage: python benchmarks/trust.py [scores | shares | chances] [repeats]
"""

import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_array

from thresher.analyze.battery.classes import BIAS, SHARED, SPECIFIC
from thresher.analyze.battery.headline import summarize
from thresher.analyze.battery.judge import Settings, judge
from thresher.analyze.battery.pairing import total
from thresher.analyze.battery.sides import Side, Sides, make_sides
from thresher.analyze.config import Battery, Thresholds
from thresher.analyze.metrics.activity import sum_activity
from thresher.analyze.metrics.estimate import Estimate, estimate
from thresher.analyze.metrics.modality import score_modality
from thresher.analyze.metrics.needs import normalize_rows
from thresher.analyze.metrics.null import Side as Marginal
from thresher.analyze.metrics.null import chance_of_pairing
from thresher.analyze.metrics.reconstruction import measure_reconstruction, sum_reconstruction
from thresher.analyze.metrics.resample import Resample
from thresher.analyze.statistics.pairing import pair_codes

Draw = Callable[[np.random.Generator, int], np.ndarray]
CODES: dict[str, Draw] = {
    "equal": lambda g, n: np.ones(n),
    "log-normal, 0.5": lambda g, n: g.lognormal(0, 0.5, n),
    "exponential": lambda g, n: g.exponential(size=n),
    "log-normal, 1": lambda g, n: g.lognormal(0, 1, n),
}
"""Codes of firing records."""
SIGNED: dict[str, Draw] = {"normal": lambda g, n: g.normal(size=n), "Laplace": lambda g, n: g.laplace(size=n)}
ACTIVE = ((2.5, 2.5), (5, 5), (15, 15), (50, 50), (500, 500), (9, 1), (27, 3), (90, 10), (900, 100))
"""Expected firing records on images, on texts."""
WIDTH, REPLICATES = 60, 200
LABELS = np.array([SHARED] * 4 + [SPECIFIC] * 7 + [BIAS])
RATES = np.array([[0.2] * 4 + [0.15] * 4 + [0.0] * 3 + [1.0], [0.2] * 4 + [0.0] * 4 + [0.15] * 3 + [0.0]])
D_IN, MOST, AT_ONCE = 16, 40_000, 2000


def main() -> None:
    """Print a table."""
    parts = {"scores": cover_scores, "shares": cover_shares, "chances": call_chances}
    parts[sys.argv[1]](int(sys.argv[2]))


def cover_scores(repeats: int) -> None:
    """Modality scores of features that fire independently, `repeats` times 60 features."""
    for kind, draw in CODES.items():
        for active in ACTIVE:
            n = max(1000, int(3 * max(active)))
            held = np.zeros((2, 3))
            for seed in range(repeats):
                generator, resample = np.random.default_rng(seed), Resample(REPLICATES, seed)
                weights = resample.weights(0, n)
                sums = [sum_activity(scatter(generator, draw, n, rate), np.arange(n), weights) for rate in active]
                scores = score_modality(sums[0], sums[1], resample.pseudo_counts(WIDTH))
                truth = active[0] / sum(active)
                for line, interval in enumerate((scores.energy_interval, scores.firing_interval)):
                    known = np.isfinite(interval.low)
                    inside = (interval.low <= truth) & (truth <= interval.high)
                    held[line] += known.sum(), inside.sum(), np.nansum(interval.high - interval.low)
            found = [f"{inside / max(known, 1):6.3f} (width {width / max(known, 1):.2f})" for known, inside, width in held]
            print(f"{kind:16} {active[0]:5g} and {active[1]:5g} firing: energy {found[0]}, count {found[1]}", flush=True)


def scatter(generator: np.random.Generator, draw: Draw, n: int, rate: float) -> csr_array:
    """Codes [record, feature] that fire in `rate` of the records on average."""
    fires = generator.random((n, WIDTH)) < rate / n
    codes = np.zeros((n, WIDTH))
    codes[fires] = draw(generator, int(fires.sum()))
    return csr_array(codes)


def cover_shares(repeats: int) -> None:
    """Headline shares and R2 of a world of 12 features, against those of 40,000 records of it."""
    truth = measure_world(np.random.default_rng(10**6), MOST, Resample(20, 0))
    for n in (20, 50, 100, 300, 1000):
        held: dict[str, list[bool]] = defaultdict(list)
        for seed in range(repeats):
            found = measure_world(np.random.default_rng(seed), n, Resample(REPLICATES, seed))
            for name, one in found.items():
                true = truth[name].value
                if one.low is not None and one.high is not None and true is not None:
                    held[name].append(one.low <= true <= one.high)
        print(
            f"{n:5} records: " + ", ".join(f"{name} {np.mean(one):.3f} ({len(one)})" for name, one in held.items()), flush=True
        )


def measure_world(generator: np.random.Generator, n: int, resample: Resample) -> dict[str, Estimate]:
    """Shares of margin, energy and gap by class, and R2 of images, with their intervals."""
    sides, x, x_hat = draw_world(generator, n, resample)
    settings = Settings(Thresholds(), Battery(n_derangements=0, edges=1), resample)
    judged = judge(sides, None, None, settings)._replace(classes=LABELS)
    groups = summarize(judged, settings)
    parts = {"margin": groups["margin"]["total"], "margin, shared": groups["margin"]["shared_self"]}
    parts |= {"energy, shared": groups["energy_image"][SHARED], "gap, bias": groups["gap"][BIAS]}
    parts |= {"gap, specific": groups["gap"][SPECIFIC]}
    sums = sum_reconstruction(x, x_hat, np.ones(n, np.int64), np.arange(n), resample.weights(0, n))
    return parts | {"R2": estimate(measure_reconstruction(sums).r2, n, "rows")}


def draw_world(generator: np.random.Generator, n: int, resample: Resample) -> tuple[Sides, torch.Tensor, torch.Tensor]:
    """Four shared features, seven of one modality, one that is always on; two captions per image; exponential codes."""
    atoms = normalize_rows(np.random.default_rng(7).normal(size=(len(LABELS), D_IN)))
    common = generator.random((n, len(LABELS))) < RATES[0]
    record = (np.arange(n), np.repeat(np.arange(n), 2))
    sides: list[Side] = []
    for index, rows in enumerate(record):
        own = generator.random((len(rows), len(LABELS))) < RATES[index]
        fires = np.where(RATES[0] == RATES[1], common[rows] & (generator.random(own.shape) < 0.8), own)
        codes = csr_array(fires * (0.2 + generator.exponential(size=fires.shape)))
        sides.append(Side(codes, rows, sum_activity(codes, rows, resample.weights(0, n))))
    pairs = np.stack([record[1], np.arange(2 * n)], axis=1)
    made = make_sides(sides[0], sides[1], pairs, atoms, n)
    x_hat = made.image.codes @ made.dictionary
    x = x_hat + generator.lognormal(-1, 0.7, (n, 1)) * generator.normal(size=x_hat.shape)
    return made, torch.from_numpy(x), torch.from_numpy(x_hat)


def call_chances(repeats: int) -> None:
    """Share of `repeats` random deals of texts whose p-value is at most alpha, over alpha, for two sides of 1000 units."""
    for kind, draw in (CODES | SIGNED).items():
        for fires in (22, 55, 100, 224, 1000):
            generator = np.random.default_rng(0)
            codes = np.zeros((2, 1000))
            codes[:, :fires] = [draw(generator, fires) for _ in range(2)]
            found = [f"{share:5.2f}" for share in call(codes[0], codes[1], repeats, generator)]
            print(f"{kind:16} {fires:5} firing: 1 % {found[0]}, 0.1 % {found[1]}, 0.01 % {found[2]}", flush=True)


def call(image: np.ndarray, text: np.ndarray, repeats: int, generator: np.random.Generator) -> list[float]:
    """P-values at the 160 ranks of the sums that matter tell where each alpha begins."""
    kept, drawn = np.flatnonzero(image), []
    for _ in range(repeats // AT_ONCE):
        order = generator.random((AT_ONCE, len(text)), dtype=np.float32).argsort(axis=1)[:, : len(kept)]
        drawn.append(text[order] @ image[kept])
    sums = np.sort(np.concatenate(drawn))[::-1]
    every = np.arange(len(image))
    pairs = np.stack([every, every], axis=1)
    totals = total(pair_codes(csr_array(image[:, None]), csr_array(text[:, None]), pairs, every))
    ranks = np.unique(np.geomspace(1, repeats // 10, 160).astype(int)) - 1
    of_sides = (totals.sums.image_powers, totals.image), (totals.sums.text_powers, totals.text)
    sides = [Marginal(powers, levels).take(np.zeros(len(ranks), np.int64)) for powers, levels in of_sides]
    p = chance_of_pairing(sums[ranks], np.rint(sums[ranks]).astype(np.int64), sides[0], sides[1], len(image))
    return [float(1 + ranks[p <= alpha].max(initial=-1)) / repeats / alpha for alpha in (1e-2, 1e-3, 1e-4)]


if __name__ == "__main__":
    main()
