"""Laws of the test whether a concept moves a probe."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import expit

from thresher.analyze.metrics.bias import correlate_with_logit, sweep_feature
from thresher.errors import AnalysisError


def test_the_correlation_is_that_of_dense_columns_and_constant_features_have_none() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(50, 4)) * (generator.random((50, 4)) < 0.5)
    z[:, 3] = 0
    logit = z[:, 1] + generator.normal(size=50)
    found = correlate_with_logit(csr_array(z), logit)
    np.testing.assert_allclose(found, [*(np.corrcoef(z[:, i], logit)[0, 1] for i in range(3)), np.nan], rtol=1e-10)
    np.testing.assert_allclose(correlate_with_logit(csr_array(7 * z), 2 * logit + 1), found, rtol=1e-10)
    with pytest.raises(AnalysisError, match="50 and 49"):
        correlate_with_logit(csr_array(z), logit[:49])


def test_setting_a_feature_to_its_own_value_changes_nothing_and_an_unread_atom_never_does() -> None:
    generator = np.random.default_rng(1)
    code, atom, probe, rest = np.full(6, 2.0), np.array([1.0, 0, 0]), np.array([0.5, 1, 0]), generator.normal(size=(6, 3))
    x_hat = rest + code[:, None] * atom
    found = sweep_feature(x_hat, code, atom, probe, 0.3, [0.0, 2.0])
    np.testing.assert_allclose(found[:, 0], expit(rest @ probe + 0.3))
    np.testing.assert_allclose(found[:, 1], expit(x_hat @ probe + 0.3))
    unread = sweep_feature(x_hat, code, np.array([0.0, 0, 1]), probe, 0.3, [-5.0, 5.0])
    np.testing.assert_allclose(unread[:, 0], unread[:, 1])
