"""Moments are the same bits whether their loops are compiled or not."""

import ml_dtypes
import numpy as np
import pytest

from thresher.data.store import moments

STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def fused():
    pytest.importorskip("numba")
    from thresher.data.store import fused

    return fused


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 33), (130, 768), (300, 64), (33, 130), (16, 4096)])
def test_compiled_and_plain_sums_are_the_same_bits(rows, width, dtype, fused):
    chance = np.random.default_rng(rows)
    x = chance.normal(size=(rows, width)) * 10.0 ** chance.integers(-6, 3, (rows, width))
    stored = x.astype(STORED[dtype])
    stored = stored.view(np.uint16) if dtype == "bfloat16" else stored
    n_groups = -(-rows // moments.GROUP_ROWS)
    found = []
    for is_fused in (False, True):
        sums, squared_norms = np.full((2, n_groups, width), np.nan, np.float32), np.full(rows, np.nan, np.float32)
        if is_fused:
            largest = fused.sum_rows(stored, sums, squared_norms)
        else:
            largest = moments._sum_slices(stored, moments.Scratch(width), sums, squared_norms)
        found.append((sums.tobytes(), squared_norms.tobytes(), float(largest)))
    assert found[0] == found[1]
    values = stored.view(STORED[dtype]).astype(np.float64)
    assert found[0][2] == np.abs(values).max()
    norms = np.frombuffer(found[0][1], np.float32)
    np.testing.assert_allclose(norms, (values**2).sum(axis=1), rtol=1e-5)


def test_every_float16_is_widened_as_it_is(fused):
    every = np.arange(2**16, dtype=np.uint16)
    sums, squared_norms = np.empty((2, 1, len(every)), np.float32), np.empty(1, np.float32)
    stored = every.view(np.float16)[None]
    fused.sum_rows(stored, sums, squared_norms)
    np.testing.assert_array_equal(sums[0, 0], stored[0].astype(np.float32))
