"""Every public name says what it does and what each argument is, and its examples run."""

import doctest
import importlib
import inspect
import pkgutil
import re

import keras
import pytest

import keras_yogi
import keras_yogi.optimizers
from keras_yogi.statistics.report import Report

ROOTS = {
    **{f"keras_yogi.{name}": getattr(keras_yogi, name) for name in keras_yogi.__all__},
    **{
        f"keras_yogi.optimizers.{name}": getattr(keras_yogi.optimizers, name)
        for name in keras_yogi.optimizers.__all__
    },
    "Report": Report,  # what keras_yogi.diagnose returns
}


def members(cls):
    """The public methods and properties that the package, and not Keras, gives a class."""
    for name, member in inspect.getmembers_static(cls):
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if not name.startswith("_") and owner.__module__.startswith("keras_yogi"):
            yield name, member


def public():
    for path, root in ROOTS.items():
        yield path, root
        if inspect.isclass(root):
            yield from ((f"{path}.{name}", member) for name, member in members(root))


PUBLIC = dict(public())


def doc_of(path):
    owner, _, name = path.rpartition(".")
    parent = ROOTS.get(owner)  # through the class, so that an override may inherit the text
    return inspect.getdoc(getattr(parent, name) if parent else PUBLIC[path])


def documented_arguments(doc):
    """The names that the Google-style section "Args:" explains."""
    section = re.search(r"^Args:\n((?:(?: .*)?\n?)*)", doc, re.MULTILINE)
    entries = re.findall(r"^ {4}(\*{0,2}\w+(?:, \w+)*): ", section[1] if section else "", re.M)
    return [name for entry in entries for name in entry.split(", ")]


def arguments_of(member):
    if inspect.isclass(member):  # which may have a `__new__` as well
        member = member.__init__
    signature = inspect.signature(getattr(member, "__func__", member))
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        stars.get(parameter.kind, "") + name
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls", "args")  # *args are Keras's arguments by position
    ]


@pytest.mark.parametrize("path", PUBLIC)
def test_says_what_it_does(path):
    doc = doc_of(path)
    assert doc
    assert doc[0].isupper() or doc[0] in "ηβεv1`"


def is_kerass(path):
    """Whether a method is one of Keras's, with the same arguments: Keras explains them."""
    cls, name = ROOTS.get(path.rpartition(".")[0]), path.rpartition(".")[2]
    kerass = [b for b in getattr(cls, "__mro__", ()) if b.__module__.startswith("keras.")]
    theirs = next((vars(b)[name] for b in kerass if name in vars(b)), None)
    return theirs is not None and arguments_of(theirs) == arguments_of(PUBLIC[path])


TAKING = [
    path
    for path, member in PUBLIC.items()
    if (callable(member) or isinstance(member, classmethod)) and path != "Report"
]


@pytest.mark.parametrize("path", TAKING)
def test_explains_each_argument(path):
    explained = documented_arguments(doc_of(path))
    assert explained == arguments_of(PUBLIC[path]) or (not explained and is_kerass(path))


@pytest.mark.parametrize("name", keras_yogi.__all__)
def test_has_every_section(name):
    doc = getattr(keras_yogi, name).__doc__
    for section in ("Args:", "Raises:", "Example:", "References:"):
        assert section in doc, section


def modules():
    for module in pkgutil.walk_packages(keras_yogi.__path__, "keras_yogi."):
        if module.name != "keras_yogi.engines.torch":  # PyTorch need not be installed
            yield importlib.import_module(module.name)


def examples():
    for module in modules():
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples:
                yield test


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.utils.Progbar, "update", lambda *_, **__: None)  # is no result
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.DocTestRunner(optionflags=options).run(EXAMPLES[name])
    assert tried
    assert not failed
