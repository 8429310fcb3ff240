"""Graphs of TensorFlow: what they need not know of a gradient, and how few an eager loop makes."""

import numpy as np
import pytest
import tensorflow as tf
from support.cases import PLAIN, over, plain_case
from support.comparison import assert_all_close, snapshot
from support.training import ones_of

pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
fused = over({"yogi, fused": PLAIN["yogi, fused"]})  # the engine that makes graphs of eager steps

# Graphs that do not know everything


def hidden(value, how):
    if how == "numpy_function":
        return tf.numpy_function(lambda: value, [], tf.float32)
    if how == "py_function":
        return tf.py_function(lambda: tf.constant(value), [], tf.float32)
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=[None] * value.ndim)


@pytest.mark.parametrize("how", ["numpy_function", "py_function", "unknown dimensions"])
@plain_case
def test_a_gradient_of_which_a_graph_knows_the_dtype_alone(case, how):
    def run(hide):
        variables = ones_of((3, 2), (2,), (), (300, 200))
        optimizer = case.optimizer()
        optimizer.build(variables)
        values = [np.full(v.shape, 0.5, "float32") for v in variables]

        def step():
            gradients = [hidden(g, how) if hide else tf.constant(g) for g in values]
            optimizer.apply(gradients, variables)

        step = tf.function(step, autograph=False)
        step()
        step()
        return snapshot(optimizer, variables)

    assert_all_close(run(True), run(False), 1e-6)


@pytest.mark.parametrize("how", ["numpy_function", "unknown dimensions"])
@plain_case
def test_a_gradient_that_turns_out_to_have_another_shape(case, how):
    """It is refused when the graph runs, and not broadcast."""
    variables = ones_of((3, 2), (2,))
    optimizer = case.optimizer()
    optimizer.build(variables)

    def step():
        gradients = [hidden(np.ones((1, 2), "float32"), how), tf.ones(2)]
        optimizer.apply(gradients, variables)

    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(step, autograph=False)()
    np.testing.assert_array_equal(variables[0].numpy(), 1.0)


@plain_case
def test_a_custom_gradient(case):
    """Its function may return what has no static shape."""

    @tf.custom_gradient
    def loss(weights):
        def gradient(upstream):
            return upstream * tf.numpy_function(np.square, [weights], tf.float32)

        return tf.reduce_sum(weights), gradient

    (weights,) = variables = ones_of((4,))
    optimizer = case.optimizer()
    optimizer.build(variables)

    def step():
        with tf.GradientTape() as tape:
            value = loss(weights.value)
        optimizer.apply([tape.gradient(value, weights.value)], variables)

    tf.function(step, autograph=False)()
    assert np.all(weights.numpy() < 1.0)


# Eager steps


@pytest.fixture
def graphs_made(monkeypatch):
    """Counts the graphs that are traced: a list that grows by one with each."""
    made = []
    initialize = tf.Graph.__init__

    def counted(self, *arguments, **keywords):
        made.append(None)
        initialize(self, *arguments, **keywords)

    monkeypatch.setattr(tf.Graph, "__init__", counted)
    tf.function(lambda: tf.constant(1.0))()
    assert made  # it does count
    return made


# Some tracing may come first, and then no more: 20 steps would make 20 graphs.
FEW = 3


@fused
def test_eager_steps_on_ever_other_sets_of_variables(case, graphs_made):
    """Stochastic depth, or freezing layer by layer: not a graph for each set."""
    random = np.random.default_rng(0)
    variables = ones_of(*[(8, 8)] * 20, (300, 200))
    optimizer = case.optimizer()
    optimizer.build(variables)
    before = 0
    for step in range(40):
        if step == 20:
            before = len(graphs_made)
        gradients = [tf.ones(v.shape) if random.random() < 0.7 else None for v in variables]
        optimizer.apply(gradients, variables)
    assert len(graphs_made) - before <= FEW


@fused
def test_eager_steps_on_sets_of_variables_that_come_a_few_times(case, graphs_made):
    """Progressive freezing, two steps a phase: a graph for the first set alone."""
    variables = ones_of(*[(8, 8)] * 20)
    optimizer = case.optimizer()
    optimizer.build(variables)
    gradients = [tf.ones(v.shape) for v in variables]
    before = len(graphs_made)
    for phase in range(20):
        for _ in range(2):
            optimizer.apply(gradients[phase:], variables[phase:])
    assert len(graphs_made) - before <= FEW


@plain_case
def test_eager_steps_in_half_precision_with_weight_decay_get_graphs(case, graphs_made):
    """Decay is a rule of its own: the two rules do not take each other's graphs away."""
    variables = ones_of((300, 300), (300, 300), dtype="bfloat16")
    optimizer = case.optimizer(weight_decay=0.125)
    optimizer.build(variables)
    gradients = [tf.ones(v.shape, "bfloat16") for v in variables]
    for _ in range(3):
        optimizer.apply(gradients, variables)
    before = len(graphs_made)
    for _ in range(10):
        optimizer.apply(gradients, variables)
    assert len(graphs_made) == before


@pytest.mark.parametrize("name", ["beta_1", "beta_2", "epsilon", "learning_rate"])
@fused
def test_eager_steps_with_a_hyperparameter_that_changes_every_time(case, name, graphs_made):
    """One-cycle schedules move β₁ along with η: not a graph for each value."""
    variables = ones_of((8, 8), (5,), (300, 200))
    optimizer = case.optimizer()
    optimizer.build(variables)
    before = 0
    for step in range(40):
        if step == 20:
            before = len(graphs_made)
        setattr(optimizer, name, 0.5 + 0.01 * step)
        optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    assert len(graphs_made) - before <= FEW
