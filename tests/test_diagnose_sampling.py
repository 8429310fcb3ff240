"""Which weights are in a sample, quantiles of them, and figures that are estimates."""

import keras
import numpy as np
import pytest
from support.figures import FIGURES, ROUNDING, by_hand, train, variables_of

import keras_yogi
from keras_yogi.statistics.collector import FAST, FULL, StatisticsCollector, positions
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


# Figures of samples


def large_variables():
    random = np.random.default_rng(5)
    shapes = {"embed/embeddings": (700, 4), "hidden/kernel": (40, 50), "out/bias": (50,)}
    variables = [keras.Variable(random.normal(size=s), name="x") for s in shapes.values()]
    for variable, path in zip(variables, shapes, strict=True):
        variable._path = path
    return variables


@pytest.fixture
def large():
    """Row r of the embedding has a gradient of the size of r; rows 500 and up have none."""
    variables = large_variables()
    optimizer = keras_yogi.Adam(0.0625)
    optimizer.build(variables)
    random = np.random.default_rng(6)
    for _ in range(4):
        gradients = [random.normal(size=v.shape).astype("float32") for v in variables]
        gradients[0] *= np.where(np.arange(700) < 500, np.arange(1, 701), 0)[:, None] / 700
        optimizer.apply(gradients)
    return optimizer, variables


SMALL = (0, 600, 60)
SAMPLED = ("effective_lr_median", "effective_lr_p99_9", "signal_to_noise_median")


def small_collector(optimizer):
    return StatisticsCollector(optimizer, fast=SMALL, full=SMALL, chunk=256)


def test_medians_and_percentiles_alone_are_of_a_sample(large):
    optimizer, variables = large
    found = small_collector(optimizer).statistics()
    expected, model = by_hand(optimizer, variables)
    pairs = [*zip(found.variables.values(), expected, strict=True), (found.model, model)]
    for figures, wanted in pairs:
        for name in set(FIGURES) - set(SAMPLED):
            assert figures[name] == pytest.approx(wanted[name], rel=ROUNDING), name
    assert found.variables["embed/embeddings"]["initial_rows"] == 200
    # The bias has 50 weights: all are in the sample.
    for name in SAMPLED:
        exact = pytest.approx(expected[2][name], rel=ROUNDING)
        assert found.variables["out/bias"][name] == exact
    for name in ("embed/embeddings", "hidden/kernel"):
        assert 200 < len(found.samples[name].multiplicity) < 400


def test_medians_of_a_sample_have_nearly_the_rank_of_the_median(large):
    optimizer, variables = large
    found = small_collector(optimizer).statistics()
    rates = []
    for variable in variables:
        v = np.ravel(optimizer.get_slot(variable, "velocity")).astype("float64")
        rates.append((0.0625 / (np.sqrt(v / (1 - 0.999**4)) + 1e-6))[v > 0])
    # Of 240 weights or more: a standard deviation of 0.5 / √240 = 0.03, of which four.
    for values, figures in zip(rates, found.variables.values(), strict=True):
        median = figures["effective_lr_median"]
        below = [np.mean(values < median * 0.9999), np.mean(values <= median * 1.0001)]
        assert below[0] - 0.12 <= 0.5 <= below[1] + 0.12
    median, everything = found.model["effective_lr_median"], np.concatenate(rates)
    assert np.mean(everything <= median * 1.0001) >= 0.4
    assert np.mean(everything < median * 0.9999) <= 0.6


def test_the_figures_after_a_batch_are_estimates(large):
    optimizer, variables = large
    found = small_collector(optimizer).estimate()
    _, model = by_hand(optimizer, variables)
    # Norms of 600 of 4,850 weights: √(kurtosis / 600) / 2 is 4 % for normal weights; four of it.
    for name in ("weight_norm", "momentum_norm"):
        assert found[name] == pytest.approx(model[name], rel=0.16), name
    assert found["reached_share"] == pytest.approx(model["reached_share"], abs=0.08)


def test_an_estimate_of_a_small_model_is_exact():
    optimizer, variables = train(keras_yogi.Yogi(0.0625), variables := variables_of()), variables
    found = StatisticsCollector(optimizer).estimate()
    _, model = by_hand(optimizer, variables)
    assert {name: found[name] for name in FIGURES} == pytest.approx(model, rel=ROUNDING)


def test_a_compiled_estimate_is_the_same(large):
    collector = small_collector(large[0])
    compiled, eager = collector.estimate(), collector.estimate(compiled=False)
    assert compiled == pytest.approx(eager, rel=ROUNDING)


def test_a_compiled_estimate_heeds_new_hyperparameters(large):
    optimizer, _ = large
    collector = small_collector(optimizer)
    collector.estimate()
    optimizer.epsilon = 0.5
    optimizer.learning_rate = 0.125
    assert collector.estimate() == small_collector(optimizer).estimate()


def test_statistics_change_nothing(large):
    optimizer, variables = large
    before = [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]
    small_collector(optimizer).estimate()
    small_collector(optimizer).statistics()
    keras_yogi.diagnose(optimizer)
    assert before == [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]
