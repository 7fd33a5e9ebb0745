"""The compiled loops of the pursuit. Rows are float32, low precision is bfloat16, seen as int16.

A score is an inner product of an atom with the residual; -inf marks an atom that may not be picked again. Scores are looked
at in blocks whose largest key is kept: finding the best means looking at the peaks and inside one block.
"""

from math import frexp, ldexp, sqrt
from typing import no_type_check

import numpy as np

from thresher.train.kernels.native.compiling import compiled, larger, widen
from thresher.train.kernels.native.tables import State

BLOCK = 256
"""Scores per block."""
NEVER = np.float32(-np.inf)
LOWEST = np.finfo(np.float32).min
"""The smallest key that may be picked."""
ZERO = np.float32(0)
ROUNDING = np.float32(2.0**-24)
"""Largest relative error of one rounding to float32."""
SAFETY = np.float32(1.005)
"""Covers the rounding of the norms that an error bound is computed from."""
TINY, HUGE = np.float32(1e-12), np.float32(1e15)
"""Norms whose squares float32 holds well; a row outside is decided by exact products with all atoms."""


@compiled
@no_type_check
def dot(left, right):
    total = ZERO
    for i in range(left.size):
        total += widen(left[i]) * widen(right[i])
    return total


@compiled
@no_type_check
def norm(row):
    return np.float32(sqrt(dot(row, row)))


@compiled
@no_type_check
def distance(left, right):
    total = ZERO
    for i in range(left.size):
        total += (left[i] - right[i]) ** 2
    return np.float32(sqrt(total))


@compiled
@no_type_check
def subtract(row, value, atom):
    for i in range(row.size):
        row[i] -= value * widen(atom[i])


@compiled
@no_type_check
def key(score, is_abs):
    """What is compared: a score, or its absolute value; NEVER stays the smallest."""
    return abs(score) if is_abs and score != NEVER else score


@compiled
@no_type_check
def measure_peaks(scores, peaks, is_abs):
    for block in range(peaks.size):
        best = NEVER
        for score in scores[block * BLOCK : (block + 1) * BLOCK]:
            best = larger(best, key(score, is_abs))
        peaks[block] = best


@compiled
@no_type_check
def lower(scores, peaks, value, gram_row, is_abs):
    """Subtract `value` times the Gram row and find the new peaks: the one pass over all scores that a step makes."""
    for block in range(peaks.size):
        part = scores[block * BLOCK : (block + 1) * BLOCK]
        row = gram_row[block * BLOCK : (block + 1) * BLOCK]
        best = NEVER
        for i in range(part.size):
            score = part[i] - value * widen(row[i])
            part[i] = score
            best = larger(best, key(score, is_abs))
        peaks[block] = best


@compiled
@no_type_check
def set_score(scores, peaks, atom, score, is_abs):
    scores[atom] = score
    block = atom // BLOCK
    measure_peaks(scores[block * BLOCK : (block + 1) * BLOCK], peaks[block : block + 1], is_abs)


@compiled
@no_type_check
def find_first(scores, threshold, is_abs):
    """The first index whose key reaches the threshold; the size if none does. No early exit, which would be scalar."""
    found = scores.size
    for i in range(scores.size):
        found = min(found, i if key(scores[i], is_abs) >= threshold else scores.size)
    return found


@compiled
@no_type_check
def choose(scores, peaks, is_abs):
    """The first atom with the largest key; some atom when NaN leaves none."""
    best = 0
    for block in range(1, peaks.size):
        if peaks[block] > peaks[best]:
            best = block
    start = best * BLOCK
    return min(start + find_first(scores[start : start + BLOCK], peaks[best], is_abs), scores.size - 1)


@compiled
@no_type_check
def pursue_rows(first, last, dictionary, gram, terms, scores, residual, indices, values):
    """Matching pursuit in place: `residual` holds the rows at first, `scores` their products with the atoms."""
    peaks = np.empty((scores.shape[1] + BLOCK - 1) // BLOCK, np.float32)
    for row in range(first, last):
        measure_peaks(scores[row], peaks, terms.is_abs)
        pursue_row(dictionary, gram, terms, scores[row], peaks, residual[row], indices[row], values[row])


@compiled
@no_type_check
def pursue_row(dictionary, gram, terms, scores, peaks, residual, indices, values):
    limit = terms.tolerance * norm(residual)
    for step in range(indices.size):
        if terms.tolerance >= 0 and norm(residual) <= limit:
            return
        pick = choose(scores, peaks, terms.is_abs)
        value = dot(dictionary[pick], residual)
        if value == 0 or (terms.is_relu and value < 0):
            return
        indices[step], values[step] = pick, value
        subtract(residual, value, dictionary[pick])
        if step + 1 < indices.size:
            lower(scores, peaks, value, gram[pick], terms.is_abs)
            if not terms.may_repeat:
                set_score(scores, peaks, pick, NEVER, terms.is_abs)


@compiled
@no_type_check
def pursue_rows_certified(first, last, tables, terms, low_rows, low_scores, residual, indices, values, counts):
    """`pursue_rows` by low-precision scores: exact products decide between all atoms that the error bound leaves.

    `counts` [row, 2]: exact products with candidates, and how often with all atoms instead.
    """
    d_sae, d_in = tables.dictionary.shape
    scores, peaks = np.empty(d_sae, np.float32), np.empty((d_sae + BLOCK - 1) // BLOCK, np.float32)
    tracked, anchor = np.empty(d_in, np.float32), np.empty(d_in, np.float32)
    state = State(scores, peaks, tracked, anchor, np.empty(tables.candidates_at_most, np.int64))
    for row in range(first, last):
        drift = open_row(tables, state, low_rows[row], low_scores[row], terms.is_abs)
        pursue_row_certified(tables, terms, state, drift, residual[row], indices[row], values[row], counts[row])


@compiled
@no_type_check
def pursue_row_certified(tables, terms, state, drift, residual, indices, values, counts):
    scores, peaks, is_abs = state.scores, state.peaks, terms.is_abs
    limit = terms.tolerance * norm(residual)
    for step in range(indices.size):
        if terms.tolerance >= 0 and norm(residual) <= limit:
            return
        n_found = collect(state, bound_error(tables, state, drift, residual), is_abs)
        counts[0] += n_found
        if n_found == 0:
            counts[1] += 1
            drift = refresh(tables, state, residual, is_abs)
            pick = choose(scores, peaks, is_abs)
            value = scores[pick]
        else:
            pick, value = decide(tables.dictionary, residual, state.candidates[:n_found], is_abs)
        if value == 0 or (terms.is_relu and value < 0):
            return
        indices[step], values[step] = pick, value
        if step + 1 < indices.size:
            drift += advance(tables, state, residual, pick, value, is_abs)
            if not terms.may_repeat:
                set_score(scores, peaks, pick, NEVER, is_abs)
        subtract(residual, value, tables.dictionary[pick])


@compiled
@no_type_check
def open_row(tables, state, low_row, low_scores, is_abs):
    """Set up a row's state from its bfloat16 scores; give the drift that their two roundings leave.

    bfloat16 has 8 bits: a number in [2^(e-1), 2^e) is off by at most 2^(e-9).
    """
    largest = ZERO
    for i in range(low_scores.size):
        score = widen(low_scores[i])
        state.scores[i] = score
        largest = larger(largest, abs(score))
    measure_peaks(state.scores, state.peaks, is_abs)
    for i in range(low_row.size):
        state.tracked[i] = widen(low_row[i])
        state.anchor[i] = ZERO
    stored = np.float32(ldexp(1.0, frexp(largest)[1] - 9)) if largest > 0 else ZERO
    return stored + bound_dot(tables, norm(state.tracked))


@compiled
@no_type_check
def bound_dot(tables, size):
    """At least the error of a float32 inner product, summed in any order, of an atom with a vector of norm `size`."""
    return tables.dictionary.shape[1] * ROUNDING * SAFETY * tables.norm * size


@compiled
@no_type_check
def bound_error(tables, state, drift, residual):
    """At least the difference of any score from the exact inner product as float32 computes it; inf where unknown.

    <d', tracked> + <d - d', anchor> - <d, residual> = <d', tracked - residual> + <d - d', anchor - residual>.
    """
    size = norm(residual)
    if not TINY < size < HUGE:
        return np.float32(np.inf)
    error = tables.norm * distance(state.tracked, residual) + tables.atom_error * distance(state.anchor, residual)
    return SAFETY * (error + drift + bound_dot(tables, size))


@compiled
@no_type_check
def collect(state, error, is_abs):
    """List the candidates, in the order of the index; give how many, 0 when the list is too short for them."""
    best = NEVER
    for block in range(state.peaks.size):
        best = larger(best, state.peaks[block])
    threshold, n_found = larger(best - 2 * error, LOWEST), 0
    for block in range(state.peaks.size):
        start = block * BLOCK
        stop = min(start + BLOCK, state.scores.size)
        while state.peaks[block] >= threshold and start < stop:
            start += find_first(state.scores[start:stop], threshold, is_abs)
            if start < stop:
                if n_found == state.candidates.size:
                    return 0
                state.candidates[n_found] = start
                n_found, start = n_found + 1, start + 1
    return n_found


@compiled
@no_type_check
def decide(dictionary, residual, candidates, is_abs):
    """The first of the candidates with the largest exact key, and its exact product."""
    pick = candidates[0]
    value = dot(dictionary[pick], residual)
    for atom in candidates[1:]:
        exact = dot(dictionary[atom], residual)
        if key(exact, is_abs) > key(value, is_abs):
            pick, value = atom, exact
    return pick, value


@compiled
@no_type_check
def refresh(tables, state, residual, is_abs):
    """Take exact products with all atoms for scores; give the new drift."""
    for atom in range(state.scores.size):
        if state.scores[atom] != NEVER:
            state.scores[atom] = dot(tables.dictionary[atom], residual)
    measure_peaks(state.scores, state.peaks, is_abs)
    for i in range(residual.size):
        state.tracked[i] = residual[i]
        state.anchor[i] = residual[i]
    return bound_dot(tables, norm(residual))


@compiled
@no_type_check
def advance(tables, state, residual, pick, value, is_abs):
    """Subtract the pick from the scores and the tracked residual; give the drift that this adds.

    The pick's own new score comes from its exact squared norm: its Gram entry is the largest and would be off the most.
    """
    own = state.scores[pick] - value * dot(tables.low[pick], tables.low[pick])
    lower(state.scores, state.peaks, value, tables.gram[pick], is_abs)
    set_score(state.scores, state.peaks, pick, own, is_abs)
    subtract(state.tracked, value, tables.low[pick])
    size = abs(value) * tables.norm
    roundings = 8 * ROUNDING * tables.norm * (size + norm(residual) + norm(state.tracked))
    return abs(value) * tables.gram_error[pick] + bound_dot(tables, size) + roundings
