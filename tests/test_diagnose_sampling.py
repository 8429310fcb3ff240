"""Which weights are in a sample, and quantiles of them."""

import numpy as np
import pytest

from keras_yogi.statistics.collector import FAST, FULL, positions
from keras_yogi.statistics.figures import quantiles


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([4, 6], [4, 6]),  # a small model: whole
        ([100], [100]),
        ([1000], [100]),
        ([3, 997], [3, 99]),  # in proportion
        ([10, 490, 500], [5, 49, 50]),
        ([1000] * 50, [5] * 50),  # more than the budget, but not less than that
    ],
)
def test_sizes_of_samples(sizes, counts):
    precision = (100, 100, 5)
    assert [len(positions(size, sum(sizes), precision)) for size in sizes] == counts


def test_the_documented_numbers_of_weights():
    assert FAST == (32_768, 4_096, 16)
    assert FULL == (1_048_576, 1_048_576, 16_384)


@pytest.mark.parametrize(("size", "count"), [(10, 10), (1000, 7), (1001, 1000), (10**7, 64)])
def test_positions_are_one_of_each_stretch(size, count):
    found = positions(size, size, (0, count, 1))
    stretches = np.arange(count + 1) * size // count
    assert np.all(found >= stretches[:-1])
    assert np.all(found < stretches[1:])
    np.testing.assert_array_equal(found, positions(size, size, (0, count, 1)))


def test_positions_do_not_keep_to_some_columns():
    """As steps of one length would: 512 divides by 16."""
    found = positions(512 * 512, 512 * 512, (0, 16_384, 1))
    columns = np.bincount(found % 16, minlength=16)
    # 1,024 expected in each, with a standard deviation of 31; six of it.
    assert np.all(np.abs(columns - 1024) < 190)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 1001])
def test_quantiles_are_numpys_of_repeated_values(size):
    random = np.random.default_rng(size)
    values = random.lognormal(sigma=10, size=size)
    values[: size // 4] = 0.0
    values[-1:] = values[:1]  # ties
    fractions = [0.001, 0.5, 0.999, 1.0]
    for multiplicity in (random.integers(1, 5, size), np.ones(size)):
        repeated = np.repeat(values, multiplicity.astype(int))
        expected = np.quantile(repeated, fractions, method="inverted_cdf")
        assert quantiles(values, multiplicity, fractions) == list(expected)


def test_quantiles_with_infinity():
    values = np.array([-0.0, 3.0, np.inf], "float32")
    assert quantiles(values, np.ones(3), [0.1, 0.5, 1.0]) == [0.0, 3.0, np.inf]


def test_quantiles_of_nothing():
    assert np.isnan(quantiles(np.array([]), np.array([]), [0.5, 0.999])).all()
