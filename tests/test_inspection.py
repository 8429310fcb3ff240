"""keras_yogi.diagnose after trainings: a warm start, a healthy one. (Replicas: test_distribute.)"""

import pytest
from support.backend import ENGINES
from support.figures import assert_figures
from support.models import regression, regression_model

import keras_yogi

# Figures of trainings


@pytest.mark.parametrize("engine", ENGINES)
def test_figures_after_a_warm_start(engine):
    optimizer = keras_yogi.Yogi(0.0625, **ENGINES[engine])
    model, (x, y) = regression_model(optimizer), regression()
    keras_yogi.warm_start(model, x, y)
    model.fit(x, y, batch_size=8, verbose=0)
    assert keras_yogi.diagnose(optimizer).step == 8
    assert_figures(keras_yogi.diagnose(optimizer), optimizer, model.trainable_variables)


def test_a_healthy_training_gives_no_warning():
    model, (x, y) = regression_model(keras_yogi.Adam(0.01)), regression()
    model.fit(x, y, batch_size=8, epochs=5, verbose=0)
    assert keras_yogi.diagnose(model.optimizer).warnings == []
