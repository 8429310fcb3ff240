"""Files that cannot be taken over are refused in words that a person can act on."""

import json
import tempfile

import keras
import numpy as np
import pytest
from support.tfa_files import CONFIG, GOLDEN, YOGI, dense, golden_copy, my_error, wrapped

from keras_yogi.migration import load_tfa


def without_attribute(name):
    return lambda file: file.attrs.__delitem__(name)


def with_attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def without_optimizer_weights(file):
    del file["optimizer_weights"]


def without_layers(file):
    del file["model_weights/hidden"]


def with_lost_slot(file):
    del file["optimizer_weights/Yogi/out/bias/m:0"]


def with_slots(change):
    def apply(file):
        state = file["optimizer_weights"]
        names = list(state.attrs["weight_names"])
        state.attrs["weight_names"] = change(state, names)

    return apply


def with_reshaped_slot(state, names):
    del state["Yogi/out/kernel/v:0"]
    state["Yogi/out/kernel/v:0"] = np.zeros((1, 4), "float32")  # as many numbers
    return names


def with_slot_of_a_stranger(state, names):
    state["Yogi/other/kernel/v:0"] = np.zeros((4, 1), "float32")
    return [*names, "Yogi/other/kernel/v:0"]


def with_slot_twice(state, names):
    state["out/kernel/v:0"] = np.zeros((4, 1), "float32")
    return [*names, "out/kernel/v:0"]


def compiled_with(optimizer_config):
    def change(file):
        config = json.loads(file.attrs["training_config"])
        config["optimizer_config"] = optimizer_config
        file.attrs["training_config"] = json.dumps(config)

    return change


def compiled(**changes):
    def change(file):
        config = {**json.loads(file.attrs["training_config"]), **changes}
        file.attrs["training_config"] = json.dumps(config)

    return change


ALONE = r"keras.models.load_model\(path, compile=False\).*load_tfa\(config\)"
AGAIN = "save it again as a whole"


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        (without_attribute("model_config"), "no `model_config`", AGAIN),
        (without_attribute("training_config"), "no `training_config`: .*without its opt", ALONE),
        (with_attribute("model_config", "{"), "damaged", AGAIN),
        (with_attribute("model_config", "3"), "no `model_config`", AGAIN),
        (with_attribute("training_config", "[]"), "optimizer cannot be taken over", ALONE),
        (without_optimizer_weights, "no optimizer weights: .*compiled, but never", ALONE),
        (without_layers, "damaged", AGAIN),
        (with_lost_slot, "damaged", AGAIN),
        (with_slots(lambda _, names: names[:-1]), r"not in the file: \['out/bias/m'\]", ALONE),
        (with_slots(lambda _, names: names[1:]), r"not in the file: \['iter'\]", ALONE),
        (with_slots(with_reshaped_slot), r"not expected: \['Yogi/out/kernel/v:0 \(1, 4\)", ALONE),
        (with_slots(with_slot_of_a_stranger), r"not expected: \['Yogi/other/kernel/v:0", ALONE),
        (with_slots(with_slot_twice), r"not expected: \['out/kernel/v:0", ALONE),
        (compiled_with({"class_name": "Adam", "config": {}}), "Received: 'Adam'", ALONE),
        (compiled_with({**YOGI, "class_name": "Addons>LAMB"}), "Received: 'Addons>LAMB'", ALONE),
        (
            compiled_with({"class_name": "Addons>Lookahead", "config": {"optimizer": YOGI}}),
            "Received: 'Addons>Lookahead' around 'Addons>Yogi'",
            ALONE,
        ),
        (compiled_with({**YOGI, "config": {**CONFIG, "beta1": 0.0}}), "/m:0", ALONE),
        (compiled_with({**YOGI, "config": {**CONFIG, "new": 1}}), "{'new': 1}", ALONE),
        (compiled_with(CONFIG), "`config` must be a dict", ALONE),
        (compiled(loss="my_error"), "loss or metrics .*my_error", "`custom_objects`"),
        (compiled(loss=wrapped("my_error")), "loss or metrics", "`custom_objects`"),
        (compiled(metrics=[[wrapped("my_error")]]), "my_error", "`custom_objects`"),
        (
            compiled(metrics=[[{"class_name": "Mine", "config": {"name": "mine"}}]]),
            "unknown: Mine",
            "`custom_objects`",
        ),
    ],
)
def test_file_that_is_refused(change, found, remedy, tmp_path):
    golden_copy(tmp_path / "model.h5", change)
    with pytest.raises(ValueError, match=f"(?s)model.h5 cannot be loaded: .*{found}.*{remedy}"):
        load_tfa(tmp_path / "model.h5")


def test_weights_file_is_refused(tmp_path):
    dense().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="no `model_config`: it holds weights alone"):
        load_tfa(tmp_path / "model.weights.h5")


def test_keras_file_is_refused(tmp_path):
    dense().save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"a zip archive, such as a `.keras` file"):
        load_tfa(tmp_path / "model.keras")


def test_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="it is a directory"):
        load_tfa(tmp_path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must name a file. Received: .*none.h5"):
        load_tfa(tmp_path / "none.h5")


def test_text_file_is_refused(tmp_path):
    (tmp_path / "model.h5").write_text("a model")
    with pytest.raises(ValueError, match="not an HDF5 file") as caught:
        load_tfa(tmp_path / "model.h5")
    assert isinstance(caught.value.__cause__, OSError)


def test_truncated_file_is_refused(tmp_path):
    whole = (GOLDEN / "tfa_model.h5").read_bytes()
    size = len(whole)
    path = tmp_path / "model.h5"
    for length in [*range(0, 16), *range(16, size, 397), *range(size - 8, size)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut short or damaged") as caught:
            load_tfa(path)
        assert isinstance(caught.value.__cause__, OSError)


def test_cause_is_kept(tmp_path):
    golden_copy(tmp_path / "model.h5", with_attribute("model_config", "{"))
    with pytest.raises(ValueError, match="damaged") as caught:
        load_tfa(tmp_path / "model.h5")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


@pytest.mark.parametrize(
    "change", [None, with_slots(with_reshaped_slot), compiled(loss="unknown"), without_layers]
)
def test_nothing_is_left_behind(change, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = tmp_path / "model.h5"
    golden_copy(path, change)
    content, known = path.read_bytes(), dict(keras.saving.get_custom_objects())
    try:
        load_tfa(path, {"my_error": my_error})
    except ValueError:
        assert change
    assert path.read_bytes() == content
    assert keras.saving.get_custom_objects() == known
    assert keras.saving.get_registered_object("my_error") is None
    assert not list((tmp_path / "temporary").iterdir())


# Lambda layers

RUN = []


def lambda_config(function):
    """Of a file whose Lambda layer stores `function` as Keras 2 does, as bytecode."""
    layer = keras.layers.Lambda(function, output_shape=(4,), name="lambda").get_config()
    code = layer["function"]["config"]
    layer |= {"function": [code["code"], None, None], "function_type": "lambda", "module": "m"}
    return {"class_name": "Lambda", "config": layer}


def with_lambda(nested):
    def change(file):
        model = json.loads(file.attrs["model_config"])
        layer = lambda_config(lambda x: __import__("test_migration_refusals").RUN.append(1) or x)
        if nested:
            config = {"name": "inner", "layers": [layer]}
            layer = {"class_name": "Sequential", "config": config}
        model["config"]["layers"].insert(2, layer)
        file.attrs["model_config"] = json.dumps(model)
        weights = file["model_weights"]
        name = layer["config"]["name"]
        weights.create_group(name).attrs["weight_names"] = np.array([], "S1")
        names = list(weights.attrs["layer_names"])
        weights.attrs["layer_names"] = [names[0], name, names[1]]

    return change


@pytest.mark.parametrize("nested", [False, True])
def test_lambda_layer_runs_only_on_request(nested, tmp_path):
    RUN.clear()
    golden_copy(tmp_path / "model.h5", with_lambda(nested))
    with pytest.raises(ValueError, match=r"it has a Lambda layer.*`safe_mode=False`"):
        load_tfa(tmp_path / "model.h5")
    assert not RUN
    model = load_tfa(tmp_path / "model.h5", safe_mode=False)
    twin = load_tfa(GOLDEN / "tfa_model.h5")
    x = np.ones((2, 3))
    np.testing.assert_array_equal(model.predict(x, verbose=0), twin.predict(x, verbose=0))
    assert RUN


def test_lambda_among_the_metrics_is_refused(tmp_path):
    code = lambda_config(lambda y, z: y)["config"]["function"]
    golden_copy(
        tmp_path / "model.h5",
        compiled(loss={"class_name": "__lambda__", "config": {"value": code}}),
    )
    with pytest.raises(ValueError, match="it has a Lambda layer"):
        load_tfa(tmp_path / "model.h5")
