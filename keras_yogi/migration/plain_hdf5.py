"""Checks that an HDF5 file is plain: all of its contents lie in it, once and in full.

HDF5 files can refer to other files and other places, and can claim far more than they store. Keras
uses none of this. Reading a plain file opens no other file, and takes no more memory than the file
takes on disk.
"""

import json
from typing import Any

import h5py

MAX_OBJECTS = 100_000  # groups, data sets and attributes; Keras's largest model has about 10,000
MAX_TEXT = 8 * 2**20  # bytes of an attribute; the config of Keras's largest model has 1 MB
MAX_DEPTH = 100  # of nested lists and dicts; a nested model adds 5

_TEXT_OR_NUMBERS = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)


def check(file: h5py.File, arrays_in: tuple[str, ...]) -> None:
    """Checks every object of a file before any data is read.

    Args:
        file: open for reading.
        arrays_in: the groups whose data sets will be read.

    Raises:
        ValueError: the file is not plain.
    """
    _check_attributes(file)
    pending, addresses, count = [file], {_address(file)}, 0
    while pending:
        group = pending.pop()
        count += len(group) + h5py.h5a.get_num_attrs(group.id)
        if count > MAX_OBJECTS:
            raise ValueError(f"it holds more than {MAX_OBJECTS:,} objects")
        for name in group:
            link = type(group.get(name, getlink=True))
            if link is not h5py.HardLink:
                raise ValueError(f"`{_shown(group, name)}` is a {link.__name__}")
            child = group[name]
            if _address(child) in addresses:
                raise ValueError(f"`{_shown(group, name)}` is an object that has another name, too")
            addresses.add(_address(child))
            _check_attributes(child)
            if isinstance(child, h5py.Group):
                pending.append(child)
            else:
                _check_place(child)
                if child.name.split("/")[1] in arrays_in:
                    _check_array(child)


def _address(item: h5py.HLObject) -> int:
    return h5py.h5o.get_info(item.id).addr


def _shown(group: h5py.Group, name: str) -> str:
    return f"{group.name}/{name}".lstrip("/")[:200]


def _check_attributes(item: h5py.HLObject) -> None:
    for index in range(h5py.h5a.get_num_attrs(item.id)):
        attribute = h5py.h5a.open(item.id, index=index)
        kind = attribute.get_type()
        size = attribute.get_space().get_simple_extent_npoints() * kind.get_size()
        if kind.get_class() not in _TEXT_OR_NUMBERS or size > MAX_TEXT:
            name = attribute.name.decode(errors="replace")
            rule = f"neither text nor numbers of up to {MAX_TEXT:,} bytes"
            raise ValueError(f"the attribute `{name}` of `{item.name[:200]}` is {rule}")


def _check_place(dataset: h5py.Dataset) -> None:
    name = dataset.name[:200]
    if not isinstance(dataset, h5py.Dataset) or dataset.id.get_type().committed():
        raise ValueError(f"`{name}` has a named data type")
    if dataset.external:
        raise ValueError(f"`{name}` is an external data set, whose numbers are in another file")
    if dataset.is_virtual:
        raise ValueError(f"`{name}` is a virtual data set, made of others")


def _check_array(dataset: h5py.Dataset) -> None:
    name = dataset.name[:200]
    if dataset.dtype.kind not in "biuf" or dataset.shape is None:
        raise ValueError(f"`{name}` holds no numbers, but {str(dataset.dtype)[:200]}")
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(f"`{name}` is compressed; `h5repack -f NONE` writes a file that is not")
    stored, claimed = dataset.id.get_storage_size(), dataset.nbytes
    if stored < claimed:
        raise ValueError(f"`{name}` is said to have {claimed:,} bytes, but {stored:,} are stored")


def names(group: h5py.Group, attribute: str) -> list[str]:
    """The list of names in an attribute; Keras splits a long one into attribute0, attribute1, …

    Raises:
        ValueError: a name occurs twice, or is not that of an object inside `group`.
    """
    parts = [attribute, *(f"{attribute}{number}" for number in range(len(group.attrs)))]
    listed = [text(name) for part in parts for name in group.attrs.get(part, [])]
    for name in listed:
        if not set(name.split("/")).isdisjoint(("", ".", "..")):
            raise ValueError(f"`{name[:200]}` is no name in `{group.name}`")
    if len(set(listed)) < len(listed):
        raise ValueError(f"`{attribute}` of `{group.name}` names something twice")
    return listed


def arrays(group: h5py.Group, names: list[str]) -> dict[str, h5py.Dataset]:
    """Data sets by name; none has been read.

    Raises:
        ValueError: a name is not that of a data set.
    """
    found = {name: group.get(name) for name in names}
    for name, dataset in found.items():
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"`{name[:200]}` is named in `{group.name}`, but is no data set there")
    return found


def text(value: Any) -> str:
    """`value` as text, which HDF5 stores in two ways. Raises a ValueError if it is not text."""
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError(f"text is expected, not {type(value).__name__}")
    return value


def config(file: h5py.File, attribute: str) -> Any:
    """The value of a JSON attribute; None if there is none.

    Raises:
        ValueError: it is not JSON, too long or too deeply nested.
    """
    written = text(file.attrs.get(attribute, "null"))
    if len(written) > MAX_TEXT:
        raise ValueError(f"`{attribute}` has more than {MAX_TEXT:,} characters")
    try:
        config = json.loads(written)
    except RecursionError:
        config = None  # deeper than Python's own limit
    else:
        level = [config]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in _children(node)]
            if not level:
                return config
    raise ValueError(f"`{attribute}` is nested more than {MAX_DEPTH} deep")


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
