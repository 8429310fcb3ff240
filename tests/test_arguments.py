"""Every bad hyperparameter is refused at construction, in words a person can act on."""

import re

import keras
import numpy as np
import pytest
from support.backend import tensor
from support.cases import BOTH

import keras_yogi

NAN, INF = float("nan"), float("inf")

BAD_FOR_BOTH = [
    *(("learning_rate", bad) for bad in [-0.1, NAN, INF, "0.1", None, True, [0.1], 1j]),
    *(("learning_rate", bad) for bad in [np.array([0.1, 0.2]), keras.optimizers.schedules]),
    *((b, bad) for b in ["beta_1", "beta_2"] for bad in [1.0, 1, -0.1, 2, NAN, INF, "0.9", None]),
    ("beta_1", False),
    ("beta_2", tensor(0.9)),
    *(("epsilon", bad) for bad in [-1e-9, NAN, INF, -INF, "1e-3", None, True]),
    *(("epsilon_hat", bad) for bad in [0, 1, None, "yes"]),
    *(("bias_correction", bad) for bad in ["velocity", None, True]),
    *(("skip_nonfinite", bad) for bad in [1, None]),
    *(("fused", bad) for bad in [1, 0, None, "yes"]),
    *(("sparse_update", bad) for bad in ["dense", None, True]),
    *(("weight_decay", bad) for bad in [-0.1, NAN, INF, "0.1", True]),
    *((c, bad) for c in ["clipnorm", "clipvalue", "global_clipnorm"] for bad in [0, -1, NAN, "1"]),
    *(("use_ema", bad) for bad in [1, None]),
    *(("ema_momentum", bad) for bad in [-0.1, 1.1, NAN, None]),
    *(("ema_overwrite_frequency", bad) for bad in [0, -1, 1.5, True]),
    *(("loss_scale_factor", bad) for bad in [0, -1, NAN, INF, "2"]),
    *(("gradient_accumulation_steps", bad) for bad in [0, 1, -2, 2.5, True, "2"]),
    ("name", 3),
]
BAD = [
    *((optimizer, name, bad) for optimizer in BOTH for name, bad in BAD_FOR_BOTH),
    *((keras_yogi.Adam, "amsgrad", bad) for bad in [0, None, "no"]),
    *(
        (keras_yogi.Yogi, name, bad)
        for name in [
            "initial_accumulator_value",
            "l1_regularization_strength",
            "l2_regularization_strength",
        ]
        for bad in [-1e-6, NAN, INF, "0", None]
    ),
    *((keras_yogi.Yogi, "activation", bad) for bad in ["relu", None, 3, ["sign"]]),
]


@pytest.mark.parametrize(("optimizer", "name", "bad"), BAD)
def test_bad_value_is_refused(optimizer, name, bad):
    shown = f"<array of shape {bad.shape}>" if isinstance(bad, np.ndarray) else repr(bad)
    expected = rf"`{name}` must be .+ Received: {name}={re.escape(shown)} \(of type "
    with pytest.raises(ValueError, match=re.compile(expected, re.DOTALL)):
        optimizer(**{name: bad})


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("epsilom", "epsilon"),
        ("xyz", None),
        # what other libraries call it
        ("lr", "learning_rate"),
        ("eps", "epsilon"),
        ("beta1", "beta_1"),
        ("wd", "weight_decay"),
    ],
)
def test_unknown_argument_is_refused(optimizer, unknown, meant):
    with pytest.raises(ValueError, match=rf"`{unknown}` must be an argument of") as error:
        optimizer(**{unknown: 0.5})
    assert f"Received: {unknown}=0.5" in str(error.value)
    assert "keras_arguments" not in str(error.value)
    assert meant is None or f"Did you mean `{meant}`?" in str(error.value)
    assert ("Did you mean" in str(error.value)) == (meant is not None)


def test_two_ways_of_clipping_are_refused():
    with pytest.raises(ValueError, match=r"Only one of .*clipnorm=1"):
        keras_yogi.Yogi(clipnorm=1.0, clipvalue=1.0)


@pytest.mark.parametrize("bad", [True, "0.1"])
def test_refused_learning_rate_is_told_what_else_there_is(bad):
    with pytest.raises(ValueError, match="LearningRateSchedule or a callable"):
        keras_yogi.Adam(bad)


def test_refused_value_may_be_unable_to_show_itself():
    """As a variable of Keras 3.10 is, while a graph is traced."""

    class Shy:
        def __repr__(self):
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"Received: epsilon=<Shy> \(of type Shy\)"):
        keras_yogi.Adam(epsilon=Shy())


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("number", [1, np.float32(0.5), np.int64(2), 0])
def test_any_real_number_is_a_learning_rate(optimizer, number):
    assert float(optimizer(number).learning_rate) == float(number)
    assert isinstance(optimizer(number).get_config()["learning_rate"], float)


def test_an_array_without_axes_is_a_number():
    assert float(keras_yogi.Adam(np.array(0.5)).learning_rate) == 0.5
    with pytest.raises(ValueError, match="`learning_rate` must be"):
        keras_yogi.Adam(np.array([0.5]))


def test_a_callable_is_a_learning_rate_and_a_class_is_not():
    assert float(keras_yogi.Adam(lambda: 0.25).learning_rate) == 0.25
    with pytest.raises(ValueError, match="`learning_rate` must be"):
        keras_yogi.Adam(keras.optimizers.schedules.ExponentialDecay)


GOOD = [
    *(("ema_momentum", good) for good in [0, 0.5, 1]),
    *(("ema_overwrite_frequency", good) for good in [1, 2, np.int64(1000)]),
    *(("gradient_accumulation_steps", good) for good in [2, 3, 1000]),
    *((name, 0) for name in ["learning_rate", "epsilon", "weight_decay", "beta_1", "beta_2"]),
    *((name, 1e-30) for name in ["clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"]),
    ("name", "mine"),
    ("sparse_update", "lazy"),
    *(("bias_correction", good) for good in ["both", "momentum", "none"]),
]


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize(("name", "good"), GOOD)
def test_a_value_at_the_bound_is_taken(optimizer, name, good):
    averages = {"use_ema": True} if name.startswith("ema") else {}
    assert optimizer(**{name: good}, **averages).get_config()[name] == good


@pytest.mark.parametrize("optimizer", BOTH)
def test_numbers_become_floats(optimizer):
    made = optimizer(beta_1=0, beta_2=np.float32(0.5), epsilon=np.float64(1e-3))
    assert [type(x) for x in (made.beta_1, made.beta_2, made.epsilon)] == [float] * 3


@pytest.mark.parametrize("optimizer", BOTH)
def test_none_is_keras_own_default(optimizer):
    optimizer(
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name=None,
    )


def test_compile_finds_yogi_by_its_name():
    assert isinstance(keras.optimizers.get("yogi"), keras_yogi.Yogi)
    assert isinstance(keras.optimizers.get("adam"), keras.optimizers.Adam)  # Keras's own stays
