"""A file made to do harm, or damaged in its numbers, is refused before it costs anything."""

import json
import os
import tracemalloc

import h5py
import numpy as np
import pytest
from support.tfa_files import GOLDEN, golden_copy

from keras_yogi import load_tfa

SLOT = "optimizer_weights/Yogi/out/kernel/v:0"
WEIGHT = "model_weights/out/out/kernel:0"
STEP = "optimizer_weights/Yogi/iter:0"


def refused(tmp_path, change, found):
    """Changes a good file, and returns the message of the refusal."""
    path = tmp_path / "model.h5"
    golden_copy(path, change)
    with pytest.raises(ValueError, match=f"(?s)model.h5 cannot be loaded: .*{found}") as caught:
        load_tfa(path)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


# What lies elsewhere


@pytest.fixture
def other(tmp_path):
    """Another file of the same numbers, and a private one."""
    (tmp_path / "private").write_bytes(b"not for others" * 100)
    golden_copy(tmp_path / "other.h5")
    return tmp_path


def external_link(file, place, folder):
    del file[place]
    file[place] = h5py.ExternalLink(str(folder / "other.h5"), place)


def soft_link(file, place, folder):
    file.move(place, "elsewhere")
    file[place] = h5py.SoftLink("/elsewhere")


def second_name(file, place, folder):
    file["elsewhere"] = file[place]


def external_data(file, place, folder):
    shape = file[place].shape
    del file[place]
    file.create_dataset(place, shape, "<f4", external=[(str(folder / "private"), 0, 400)])


def virtual_data(file, place, folder):
    shape = file[place].shape
    del file[place]
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), place, shape)
    file.create_virtual_dataset(place, layout)


def named_type(file, place, folder):
    values = file[place][()]
    del file[place]
    file["type"] = np.dtype("<f4")
    file.create_dataset(place, data=values, dtype=file["type"])


@pytest.mark.parametrize("place", [SLOT, WEIGHT])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (external_link, "is a ExternalLink"),
        (soft_link, "is a SoftLink"),
        (second_name, "has another name"),
        (external_data, "external data set, whose numbers are in another file"),
        (virtual_data, "a virtual data set"),
        (named_type, "named data type"),
    ],
)
def test_nothing_is_read_from_elsewhere(change, found, place, other):
    message = refused(other, lambda file: change(file, place, other), found)
    assert "private" not in message


@pytest.mark.parametrize("place", ["optimizer_weights", "model_weights", "model_weights/out"])
@pytest.mark.parametrize("change", [external_link, soft_link])
def test_groups_are_not_links(change, place, other):
    refused(other, lambda file: change(file, place, other), "Link")


def test_links_that_no_name_leads_to_are_refused(other):
    def change(file):
        file["notes"] = h5py.ExternalLink(str(other / "other.h5"), "/")

    refused(other, change, "`notes` is a ExternalLink")


def test_a_group_inside_of_itself(tmp_path):
    def change(file):
        file["model_weights/out/again"] = file["model_weights"]

    refused(tmp_path, change, "`model_weights/out/again` is an object that has another name")


@pytest.mark.parametrize("name", ["/model_weights/out/out/bias:0", "./out/bias:0", "a//b", ""])
@pytest.mark.parametrize("group", ["optimizer_weights", "model_weights/out"])
def test_names_stay_in_their_group(name, group, tmp_path):
    def change(file):
        file[group].attrs["weight_names"] = [name]

    refused(tmp_path, change, "is no name in")


def test_a_name_twice(tmp_path):
    def change(file):
        names = file["model_weights/out"].attrs["weight_names"]
        file["model_weights/out"].attrs["weight_names"] = [*names, *names]

    refused(tmp_path, change, "names something twice")


def test_a_name_of_a_group(tmp_path):
    def change(file):
        names = file["optimizer_weights"].attrs["weight_names"]
        file["optimizer_weights"].attrs["weight_names"] = [*names, "Yogi"]

    refused(tmp_path, change, "`Yogi` is named in `/optimizer_weights`, but is no data set")


# What is larger than it looks


def replace(place, data=None, **arguments):
    def change(file):
        del file[place]
        file.create_dataset(place, data=data, **arguments)

    return change


COUNT = 400_000_000
LARGE = {
    "compressed": dict(shape=(COUNT,), dtype="<f4", chunks=(10**6,), compression="gzip"),
    "never written": dict(shape=(COUNT,), dtype="<f4"),
    "one large chunk": dict(
        shape=(4, 1), dtype="<f4", chunks=(COUNT, 1), maxshape=(None, 1), compression="gzip"
    ),
}


@pytest.mark.parametrize("place", [SLOT, WEIGHT, STEP])
@pytest.mark.parametrize("arguments", LARGE.values(), ids=LARGE.keys())
def test_nothing_is_unpacked(arguments, place, tmp_path):
    tracemalloc.start()  # NumPy's arrays are in it
    refused(tmp_path, replace(place, **arguments), "is compressed|but 0 are stored")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_slot_of_another_shape_is_not_read(tmp_path, monkeypatch):
    read = []
    get = h5py.Dataset.__getitem__

    def recording(dataset, key, **arguments):
        read.append(dataset.name)
        return get(dataset, key, **arguments)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", recording)
    change = replace(SLOT, np.zeros((5, 1), "<f4"))
    refused(tmp_path, change, r"not expected: \['Yogi/out/kernel/v:0 \(5, 1\)'\]")
    assert not [name for name in read if "optimizer_weights" in name]


def test_too_many_objects(tmp_path):
    def change(file):
        for number in range(100_001):
            h5py.h5g.create(file["model_weights"].id, str(number).encode())

    refused(tmp_path, change, "it holds more than 100,000 objects")


@pytest.mark.parametrize("attribute", ["model_config", "training_config"])
def test_a_text_that_is_too_long(attribute, tmp_path):
    def change(file):
        file.attrs[attribute] = json.dumps({"x": "y" * 8 * 2**20})

    refused(tmp_path, change, f"`{attribute}` has more than 8,388,608 characters")


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("attribute", ["model_config", "training_config"])
def test_a_config_that_is_too_deep(attribute, depth, tmp_path):
    def change(file):
        file.attrs[attribute] = "[" * depth + "]" * depth

    refused(tmp_path, change, f"`{attribute}` is nested more than 100 deep")


@pytest.mark.parametrize("attribute", ["model_config", "training_config"])
@pytest.mark.parametrize(
    ("value", "found"),
    [(b"\xff", "damaged"), (3.0, "text is expected, not float64"), ("{", "property name")],
)
def test_a_config_that_is_no_json(attribute, value, found, tmp_path):
    refused(tmp_path, lambda file: file.attrs.__setitem__(attribute, value), found)


def test_an_attribute_of_references(tmp_path):
    def change(file):
        file["model_weights"].attrs["axes"] = file[WEIGHT].ref

    refused(tmp_path, change, "the attribute `axes` of `/model_weights` is neither text nor num")


def test_errors_hold_no_long_values(tmp_path):
    def unknown_keys(file):
        config = json.loads(file.attrs["training_config"])
        config["optimizer_config"]["config"] |= {f"key{number}": 0 for number in range(10_000)}
        file.attrs["training_config"] = json.dumps(config)

    def many_strangers(file):
        state = file["optimizer_weights"]
        added = [f"stranger{number}:0" for number in range(300)]
        for name in added:
            state[name] = 0.0
        state.attrs["weight_names"] = [*state.attrs["weight_names"], *added]

    refused(tmp_path, unknown_keys, "must have no keys but")
    refused(tmp_path, many_strangers, "not expected: .*stranger0")


# Numbers that no training leaves behind


@pytest.mark.parametrize(
    ("place", "value", "found"),
    [
        (SLOT, np.nan, r"out/kernel/v:0 holds NaN or infinity"),
        (SLOT, np.inf, r"out/kernel/v:0 holds NaN or infinity"),
        (SLOT, -1e-9, r"out/kernel/v:0 holds negative numbers"),
        (SLOT.replace("/v", "/m"), np.nan, r"out/kernel/m:0 holds NaN or infinity"),
        (STEP, -1, "`iter` must be a number without a fraction"),
        (STEP, 2.5, "`iter` must be a number without a fraction"),
        (STEP, np.nan, "`iter` must be a number without a fraction"),
        (STEP, np.inf, "`iter` must be a number without a fraction"),
        (STEP, 2**31, "`iter` must be a number without a fraction"),
        (STEP, np.uint64(2**64 - 1), "`iter` must be a number without a fraction"),
        (STEP, True, "`iter` must be a number without a fraction"),
    ],
)
def test_a_state_that_cannot_be(place, value, found, tmp_path):
    def change(file):
        array = file[place][()]
        del file[place]
        if np.ndim(array):
            array[-1] = value
        file[place] = array if np.ndim(array) else value

    refused(tmp_path, change, found)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.full((4, 1), 1e300), "holds NaN or infinity"),  # more than float32 holds
        (np.ones((4, 1), "int32"), "must be of a floating dtype, not int32"),
        (np.ones((4, 1), "complex64"), "holds no numbers, but complex64"),
        (np.full((4, 1), b"text"), "holds no numbers"),
        (np.zeros((4, 1), [("a", "<f4"), ("b", "<f4")]), "holds no numbers"),
        (h5py.Empty("<f4"), "holds no numbers"),
    ],
)
def test_a_slot_of_another_dtype(value, found, tmp_path):
    refused(tmp_path, replace(SLOT, value), found)


def test_a_slot_in_double_precision_is_rounded(tmp_path):
    value = np.array([[0.1], [0.2], [0.3], [0.4]])
    golden_copy(tmp_path / "model.h5", replace(SLOT, value))
    optimizer = load_tfa(tmp_path / "model.h5").optimizer
    velocity = optimizer.get_slot(optimizer.trained_variables[2], "velocity")
    np.testing.assert_array_equal(velocity, value.astype("float32"))


# What is no file of Keras


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="it is not a regular file"):
        load_tfa(tmp_path / "model.h5")


def test_damage_anywhere_is_a_value_error_or_loads(tmp_path):
    """One byte of the file changed at a time; the numbers of the weights may be any."""
    whole = (GOLDEN / "tfa_model.h5").read_bytes()
    rng = np.random.default_rng(20181203)
    path = tmp_path / "model.h5"
    as_said = 0
    for place in rng.integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_tfa(path)
        except ValueError as error:
            as_said += "model.h5 cannot be loaded: " in str(error)
        else:
            as_said += 1
    assert as_said == 40


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (dict(custom_objects=["my_loss"]), "custom_objects"),
        (dict(safe_mode="no"), "safe_mode"),
        (dict(path_or_config=3), "path_or_config"),
    ],
)
def test_arguments_are_checked(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        load_tfa(**{"path_or_config": GOLDEN / "tfa_model.h5", **arguments})
