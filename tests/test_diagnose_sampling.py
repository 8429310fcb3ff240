"""Which weights are looked at, and quantiles of them."""

import numpy as np
import pytest

from keras_yogi.diagnostics import quantiles
from keras_yogi.diagnostics.sampling import EVERY_BATCH, THOROUGH, Precision, limit, positions

SMALL = Precision(whole=10, budget=100, at_least=5, complete=False, compiled=False)


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([4, 6], 6),  # a small model: whole
        ([1000], 100),
        ([10, 1000, 1000], 45),  # what the small one leaves, shared
        ([60, 40, 10], 50),
        ([1000] * 50, 5),  # more than the budget, but not less than that
        ([], 0),
    ],
)
def test_limit(sizes, most):
    assert limit(sizes, SMALL) == most
    if sizes:
        total = sum(min(size, most) for size in sizes)
        assert total <= max(SMALL.budget, SMALL.at_least * len(sizes))


def test_the_documented_numbers_of_weights():
    assert EVERY_BATCH[:3] == (65_536, 8_192, 32)
    assert THOROUGH[:3] == (1_048_576, 1_048_576, 16_384)
    assert THOROUGH.complete
    assert not EVERY_BATCH.complete


@pytest.mark.parametrize(("size", "count"), [(10, 10), (1000, 7), (1001, 1000), (10**7, 64)])
def test_positions_are_one_of_each_stretch(size, count):
    found = positions(size, count)
    stretches = np.arange(count + 1) * size // count
    assert np.all(found >= stretches[:-1])
    assert np.all(found < stretches[1:])
    np.testing.assert_array_equal(found, positions(size, count))


def test_positions_do_not_keep_to_some_columns():
    """As steps of one length would: 512 divides by 16."""
    columns = np.bincount(positions(512 * 512, 16_384) % 16, minlength=16)
    # 1,024 expected in each, with a standard deviation of 31; six of it.
    assert np.all(np.abs(columns - 1024) < 190)


def test_quantiles_of_rows_are_numpys():
    random = np.random.default_rng(0)
    counts = np.array([1, 2, 5, 64, 65, 3, 1000, 1000])
    values = random.lognormal(sigma=5, size=counts.sum())
    found = quantiles.OfRows(counts, (0.5, 0.999))(values)
    for place, row in enumerate(np.split(values, np.cumsum(counts)[:-1])):
        np.testing.assert_allclose(found[:, place], np.quantile(row, (0.5, 0.999)), rtol=1e-14)


def test_quantiles_of_several_kinds_of_values():
    counts = np.array([3, 70, 1])
    values = np.random.default_rng(0).normal(size=(2, counts.sum()))
    of_rows = quantiles.OfRows(counts, (0.5, 0.999))
    expected = [of_rows(each) for each in values]
    np.testing.assert_array_equal(of_rows(values), expected)


def test_quantiles_of_rows_with_infinities():
    values = np.array([1.0, np.inf, np.inf, 2.0])
    found = quantiles.OfRows(np.array([3, 1]), (0.5, 1.0))(values)
    np.testing.assert_array_equal(found, [[np.inf, 2.0], [np.inf, 2.0]])


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1001])
def test_weighted_quantiles_are_numpys_of_repeated_values(size):
    random = np.random.default_rng(size)
    values = random.lognormal(sigma=10, size=size)
    values[: size // 4] = 0.0
    values[-1:] = values[:1]  # ties
    weights = random.integers(1, 5, size).astype("float64")
    fractions = (0.0, 0.001, 0.5, 0.999, 1.0)
    expected = np.quantile(np.repeat(values, weights.astype(int)), fractions)
    found = quantiles.weighted(values, weights, fractions)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_weighted_quantiles_with_infinity_and_negative_zero():
    values = np.array([-0.0, 3.0, np.inf], "float32")
    assert quantiles.weighted(values, np.ones(3), (0.0, 0.5, 1.0)) == [0.0, 3.0, np.inf]
