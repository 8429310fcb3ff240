"""What TensorFlow Addons left behind goes on in keras_yogi as it would have gone on there."""

import json
import re

import h5py
import keras
import numpy as np
import pytest
from support.tfa_files import CONFIG, GOLDEN, dense, golden_copy, my_error, wrapped

import keras_yogi
from keras_yogi.migration import load_tfa

# Files of TensorFlow Addons


class Recording:
    """One of the files, its data, and the weights after each of 10 further steps there."""

    def __init__(self, name):
        self.path = GOLDEN / name
        if name == "tfa_model.h5":
            arrays = np.load(GOLDEN.parent / "golden" / "tfa_migration.npz")
            self.x, self.y = arrays["x"], arrays["y"]
            weights = [arrays[f"next_w{index}"].reshape(10, -1) for index in range(4)]
            self.next = np.concatenate(weights, axis=1)
            return
        with h5py.File(self.path) as file:
            recorded = {name: array[()] for name, array in file["recorded"].items()}
        x = [recorded[name] for name in ("x0", "x1") if name in recorded]
        y = [recorded[name] for name in ("y0", "y1") if name in recorded]
        self.x, self.y = (arrays if len(arrays) > 1 else arrays[0] for arrays in (x, y))
        self.next = recorded["next"]

    def error_of(self, model, how="fit"):
        """The largest deviation of any weight in ten steps, relative to the largest weight."""
        model.jit_compile = how == "fit, compiled"
        steps = []
        for _ in range(10):
            if how.startswith("fit"):
                model.fit(self.x, self.y, batch_size=100, shuffle=False, epochs=1, verbose=0)
            else:
                model.train_on_batch(self.x, self.y)
            steps.append(np.concatenate([np.ravel(w) for w in model.get_weights()]))
        return np.abs(np.stack(steps) - self.next).max() / np.abs(self.next).max()


FILES = ["tfa_model.h5", "functional_model.h5", "unfrozen_model.h5"]
# float32 rounds to 6e-8, and Keras 2 and 3 sum in different orders; 1.8e-7 is reached.
ROUNDING = 5e-7


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "fit") for name in FILES), (FILES[0], "fit, compiled"), (FILES[1], "train_on_batch")],
)
def test_training_goes_on_where_it_stopped(name, how):
    recording = Recording(name)
    model = load_tfa(recording.path)
    assert int(model.optimizer.iterations) == 20
    assert recording.error_of(model, how) < ROUNDING
    assert int(model.optimizer.iterations) == 30


def fresh(optimizer):
    optimizer.iterations.assign(0)


def without_momentum(optimizer):
    for momentum in optimizer.slots()["momentum"]:
        momentum.assign(keras.ops.zeros_like(momentum))


def without_velocity(optimizer):
    for velocity in optimizer.slots()["velocity"]:
        velocity.assign(keras.ops.ones_like(velocity))


@pytest.mark.parametrize("spoil", [fresh, without_momentum, without_velocity])
def test_every_part_of_the_state_matters(spoil):
    recording = Recording("tfa_model.h5")
    model = load_tfa(recording.path)
    spoil(model.optimizer)
    assert recording.error_of(model) > 100 * ROUNDING


def test_weights_and_slots_are_those_of_the_save():
    arrays = np.load(GOLDEN.parent / "golden" / "tfa_migration.npz")
    model = load_tfa(str(GOLDEN / "tfa_model.h5"))
    for index, variable in enumerate(model.trainable_variables):
        np.testing.assert_array_equal(variable, arrays[f"save_w{index}"])
        for name, offset in (("velocity", 1), ("momentum", 2)):
            slot = model.optimizer.get_slot(variable, name)
            np.testing.assert_array_equal(slot, arrays[f"save_opt{2 * index + offset}"])


def test_slots_in_another_order_than_the_weights():
    model = load_tfa(GOLDEN / "unfrozen_model.h5")
    with h5py.File(GOLDEN / "unfrozen_model.h5") as file:
        saved = file["optimizer_weights/Yogi"]
        assert file["optimizer_weights"].attrs["weight_names"][1] == "Yogi/top/kernel/v:0"
        rows, hidden = model.get_layer("rows"), model.get_layer("hidden")
        for variable, name in (
            (rows.embeddings, "rows/embeddings"),
            (hidden.kernel, "hidden/kernel"),
            (hidden.bias, "hidden/bias"),
            (model.get_layer("top").bias, "top/bias"),  # of the shape of hidden/bias
        ):
            velocity = model.optimizer.get_slot(variable, "velocity")
            np.testing.assert_array_equal(velocity, saved[f"{name}/v:0"])
            assert not np.any(model.optimizer.get_slot(variable, "momentum"))


def test_frozen_layers_stay_frozen():
    model = load_tfa(GOLDEN / "functional_model.h5")
    frozen = [model.get_layer("frozen").kernel, model.get_layer("block").layers[-1].kernel]
    assert not any(variable.trainable for variable in frozen)
    assert len(model.optimizer.slots()["velocity"]) == len(model.trainable_variables) == 12


def test_loss_and_metrics_are_those_of_the_file():
    recording = Recording("functional_model.h5")
    model = load_tfa(recording.path)
    logs = model.evaluate(recording.x, recording.y, batch_size=100, return_dict=True, verbose=0)
    assert set(logs) == {
        *("loss", "score_loss", "kind_loss", "score_mae", "kind_accuracy"),
        *("kind_sparse_categorical_accuracy", "kind_weighted_accuracy"),
    }
    score, kind = model.predict(recording.x, batch_size=100, verbose=0)
    targets = recording.y[0], recording.y[1]
    losses = [np.mean((score - targets[0]) ** 2), -np.log(kind[range(24), targets[1]]).mean()]
    # 1e-6: float32
    np.testing.assert_allclose(logs["score_loss"], losses[0], rtol=1e-6)
    np.testing.assert_allclose(logs["kind_loss"], losses[1], rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], losses[0] + 0.5 * losses[1], rtol=1e-6)
    np.testing.assert_allclose(logs["score_mae"], np.abs(score - targets[0]).mean(), rtol=1e-6)
    accuracy = np.mean(kind.argmax(axis=1) == targets[1])
    np.testing.assert_allclose(logs["kind_weighted_accuracy"], accuracy, rtol=1e-6)


def test_every_snippet_of_the_page_runs(tmp_path, monkeypatch):
    page = (GOLDEN.parents[1] / "docs" / "moving_from_tfa.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 4
    golden_copy(tmp_path / "model.h5")
    monkeypatch.chdir(tmp_path)
    for snippet in snippets:
        names = {}
        exec(snippet, names)
        if "model" in names:
            assert isinstance(names["model"].optimizer, keras_yogi.Yogi)


@pytest.mark.parametrize("name", FILES)
def test_goes_through_a_keras_file(name, tmp_path):
    recording = Recording(name)
    load_tfa(recording.path).save(tmp_path / "model.keras")
    assert recording.error_of(keras.models.load_model(tmp_path / "model.keras")) < ROUNDING


def as_nested(file, class_name):
    """Makes the two layers the one layer of a functional model, as Keras 2 saves that."""
    inner = json.loads(file.attrs["model_config"])["config"]
    if class_name == "Functional":
        above = None
        for layer in inner["layers"]:
            layer["name"] = layer["config"]["name"]
            layer["inbound_nodes"] = [[[above, 0, 0, {}]]] if above else []
            above = layer["name"]
        inner |= {"input_layers": [["hidden_input", 0, 0]], "output_layers": [["out", 0, 0]]}
    top = {"name": "top", "batch_input_shape": [None, 3], "dtype": "float32"}
    layers = [
        {"class_name": "InputLayer", "config": top, "name": "top", "inbound_nodes": []},
        {
            **{"class_name": class_name, "config": {**inner, "name": "inner"}, "name": "inner"},
            "inbound_nodes": [[["top", 0, 0, {}]]],
        },
    ]
    graph = {"input_layers": [["top", 0, 0]], "output_layers": [["inner", 1, 0]]}
    config = {"name": "outer", "layers": layers, **graph}
    file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
    weights = file["model_weights"]
    group = weights.create_group("inner")
    names = [name for layer in ("hidden", "out") for name in weights[layer].attrs["weight_names"]]
    for name in names:
        group[name] = weights[name.split("/")[0]][name][()]
    group.attrs["weight_names"] = names
    weights.attrs["layer_names"] = ["inner"]


@pytest.mark.parametrize("class_name", ["Sequential", "Functional"])
def test_nested_model_as_output(class_name, tmp_path):
    golden_copy(tmp_path / "model.h5", lambda file: as_nested(file, class_name))
    model = load_tfa(tmp_path / "model.h5")
    assert [layer.name for layer in model.layers] == ["top", "inner"]
    assert Recording("tfa_model.h5").error_of(model) < ROUNDING


# Files made here: of Keras 3, with the optimizer and its weights as TensorFlow Addons writes them


def write_names(group, attribute, names):
    """As Keras does: in several attributes where one would be over the limit of 64 kB."""
    names = [name.encode() for name in names]
    if sum(map(len, names)) < 60_000:
        group.attrs[attribute] = names
        return
    for number in range(4):
        group.attrs[f"{attribute}{number}"] = names[number::4]


def legacy_file(path, model, prefix="Yogi/", reverse=False, **optimizer_config):
    """Saves `model` with slots of random numbers, which it returns: v and m of each variable."""
    model.compile("sgd", "mse")
    model.save(path)
    rng = np.random.default_rng(0)
    slots = {}
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["training_config"])
        config["optimizer_config"] = {
            "class_name": "Addons>Yogi",
            "config": {**CONFIG, **optimizer_config},
        }
        file.attrs["training_config"] = json.dumps(config)
        del file["optimizer_weights"]
        group = file.create_group("optimizer_weights")
        group["iter:0"] = np.int64(7)
        names = ["iter:0"]
        for variable in model.trainable_variables:
            for slot in "v" if optimizer_config.get("beta1") == 0.0 else "vm":
                name = f"{prefix}{variable.path}/{slot}:0"
                slots[variable.path, slot] = rng.random(variable.shape, "float32")
                group[name] = slots[variable.path, slot]
                names.append(name)
        write_names(group, "weight_names", reversed(names) if reverse else names)
    return slots


def tower():
    """Layers of one shape, nested, frozen, with moving statistics."""
    inputs, block_in = keras.Input((4,)), keras.Input((4,))
    inner = keras.Sequential(
        [keras.layers.Dense(4, name="one"), keras.layers.Dense(4, name="two")], name="inner"
    )
    frozen = keras.layers.Dense(4, trainable=False, name="frozen")(block_in)
    norm = keras.layers.BatchNormalization(name="norm")(frozen)
    block = keras.Model(block_in, keras.layers.Dense(4, name="three")(norm), name="block")
    return keras.Model(inputs, keras.layers.Dense(4, name="four")(block(inner(inputs))))


@pytest.mark.parametrize(
    ("prefix", "reverse", "beta1"),
    [("Yogi/", False, 0.8), ("training/Yogi/", True, 0.8), ("", True, 0.0), ("Yogi/", True, 0.0)],
)
def test_slots_are_found_by_name(prefix, reverse, beta1, tmp_path):
    original = tower()
    slots = legacy_file(tmp_path / "model.h5", original, prefix, reverse, beta1=beta1)
    model = load_tfa(tmp_path / "model.h5")
    assert int(model.optimizer.iterations) == 7
    assert len(model.trainable_variables) == len(original.trainable_variables) == 10
    for variable, twin in zip(model.weights, original.weights, strict=True):
        np.testing.assert_array_equal(variable, twin)
    for variable, twin in zip(model.trainable_variables, original.trainable_variables, strict=True):
        velocity = model.optimizer.get_slot(variable, "velocity")
        np.testing.assert_array_equal(velocity, slots[twin.path, "v"])
        momentum = model.optimizer.get_slot(variable, "momentum")
        np.testing.assert_array_equal(momentum, slots.get((twin.path, "m"), np.zeros(twin.shape)))
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 4)))


def test_layer_in_two_models_is_refused(tmp_path):
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    legacy_file(tmp_path / "model.h5", keras.Sequential([keras.Input((4,)), inner, shared]))
    with pytest.raises(ValueError, match=r"several weights of the name .*shared/kernel"):
        load_tfa(tmp_path / "model.h5")


def test_many_long_names(tmp_path):
    layers = [keras.layers.Dense(1, name=f"{number:03}_{'x' * 500}") for number in range(36)]
    slots = legacy_file(tmp_path / "model.h5", keras.Sequential([keras.Input((1,)), *layers]))
    with h5py.File(tmp_path / "model.h5") as file:
        assert "weight_names3" in file["optimizer_weights"].attrs
    model = load_tfa(tmp_path / "model.h5")
    for variable in model.trainable_variables:
        velocity = model.optimizer.get_slot(variable, "velocity")
        np.testing.assert_array_equal(velocity, slots[variable.path, "v"])


def test_file_without_a_suffix(tmp_path):
    legacy_file(tmp_path / "model.h5", dense())
    (tmp_path / "model.h5").rename(tmp_path / "checkpoint")
    assert int(load_tfa(tmp_path / "checkpoint").optimizer.iterations) == 7


def training_config(path, **changes):
    with h5py.File(path, "a") as file:
        config = {**json.loads(file.attrs["training_config"]), **changes}
        file.attrs["training_config"] = json.dumps(config)


LOSSES = {
    "mse": "mean_squared_error",
    "mean_absolute_error": "mean_absolute_error",
    "BinaryCrossentropy": {"from_logits": True, "label_smoothing": 0.0, "axis": -1},
    "Huber": {"delta": 2.0},
    "MeanSquaredError": {},
    "SparseCategoricalCrossentropy": {"from_logits": True, "ignore_class": None},
    "LogCosh": {},
}


@pytest.mark.parametrize("class_name", LOSSES)
def test_losses_as_keras_2_wrote_them(class_name, tmp_path):
    legacy_file(tmp_path / "model.h5", dense())
    settings = {"reduction": "auto", "name": "loss", "fn": "some_function"}
    saved = (
        class_name
        if isinstance(LOSSES[class_name], str)
        else {"class_name": class_name, "config": {**settings, **LOSSES[class_name]}}
    )
    training_config(tmp_path / "model.h5", loss=saved)
    model = load_tfa(tmp_path / "model.h5")
    y = np.array([[0], [1]]) if class_name.startswith("Sparse") else np.array([[0.0, 1.0]] * 2)
    x = np.random.default_rng(0).normal(size=(2, 3))
    expected = (
        getattr(keras.losses, LOSSES[class_name])
        if isinstance(saved, str)
        else getattr(keras.losses, class_name)(
            **{k: v for k, v in LOSSES[class_name].items() if v is not None}
        )
    )
    value = np.mean(expected(y, model.predict(x, verbose=0)))
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), value, rtol=1e-6)  # float32


def test_metrics_as_keras_2_wrote_them(tmp_path):
    legacy_file(tmp_path / "model.h5", dense())
    metrics = [
        wrapped("mean_absolute_error", "mae"),
        wrapped("categorical_accuracy", "accuracy"),
        wrapped("my_error", "mine"),
        {"class_name": "RootMeanSquaredError", "config": {"name": "rmse", "dtype": "float32"}},
        {
            "class_name": "SparseCategoricalCrossentropy",
            "config": {"name": "xe", "dtype": "float32", "ignore_class": None, "axis": -1},
        },
    ]
    training_config(tmp_path / "model.h5", metrics=[metrics[:4]], loss="my_error")
    model = load_tfa(tmp_path / "model.h5", {"my_error": my_error})
    x, y = np.ones((2, 3)), np.array([[0.0, 1.0]] * 2)
    error = np.abs(model.predict(x, verbose=0) - y)
    logs = model.evaluate(x, y, return_dict=True, verbose=0)
    assert set(logs) == {"loss", "mae", "accuracy", "mine", "rmse"}
    for name, expected in (
        ("loss", np.mean(error**3)),
        ("mine", np.mean(error**3)),
        ("mae", np.mean(error)),
        ("rmse", np.sqrt(np.mean(error**2))),
    ):
        np.testing.assert_allclose(logs[name], expected, rtol=1e-6)  # float32
    training_config(tmp_path / "model.h5", metrics=[metrics[4:]], weighted_metrics=["accuracy"])
    model = load_tfa(tmp_path / "model.h5", {"my_error": my_error})
    assert "xe" in model.evaluate(x, np.array([[0.0], [1.0]]), return_dict=True, verbose=0)


class Doubling(keras.layers.Layer):
    """A layer that Keras does not have."""

    def call(self, inputs):
        return inputs * 2


def test_layer_of_the_user(tmp_path):
    legacy_file(tmp_path / "model.h5", keras.Sequential([keras.Input((3,)), Doubling()]))
    with pytest.raises(ValueError, match=r"Keras cannot load its layers .*Doubling.*custom_obj"):
        load_tfa(tmp_path / "model.h5")
