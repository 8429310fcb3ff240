"""PyTorch alone: groups of variables, torch.compile, and what its tensors may do."""

import keras
import numpy as np
import pytest
from support.backend import BACKEND, array, tensor
from support.cases import CASES, KINDS, OPTIONS, over
from support.comparison import assert_nearly_unchanged, assert_unchanged, snapshot
from support.models import by_loop, sine_model
from support.training import stateless

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch alone")

MIXED = [*[(4, 3), (5,), (), (0, 2)] * 4, (400, 500), (40_000,)]
"""Shapes: small ones, an empty one, one of more than one piece, one between."""


def mixed_variables():
    random = np.random.default_rng(3)
    dtypes = ["float32"] * 13 + ["float64", "float16", "float32", "float32", "float32"]
    values = [random.normal(size=shape) for shape in MIXED]
    variables = [keras.Variable(v, dtype=d) for v, d in zip(values, dtypes, strict=True)]
    variables[-2].value.data = variables[-2].value.data.T.contiguous().T  # other strides
    return variables


def mixed_steps(optimizer, variables, steps=6, between=lambda step: None):
    """Steps with other sets of gradients each time: all, all but one, a few."""
    random = np.random.default_rng(4)
    for step in range(steps):
        gradients = [
            tensor(random.normal(size=s), v.dtype) for s, v in zip(MIXED, variables, strict=True)
        ]
        for missing in ([], [2], range(3, len(MIXED) - 2))[step % 3]:
            gradients[missing] = None
        optimizer.apply(gradients, variables)
        between(step)
    return snapshot(optimizer, variables)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@over(KINDS)
def test_groups_compute_what_single_variables_do(case):
    """To the bit: the operations are the same, element by element."""

    def run(**options):
        optimizer, variables = case.optimizer(**options), mixed_variables()

        def set_a_slot(step):
            optimizer.set_slot(variables[1], "velocity", np.full(5, step + 1.0))
            optimizer.set_slot(variables[-2], "momentum", np.full(MIXED[-2], 0.5))

        return mixed_steps(optimizer, variables, between=set_a_slot)

    assert_unchanged(run(fused=False), run(fused=True))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_slots_may_be_given_other_memory():
    """As whoever moves them to another device does."""

    def run(**options):
        optimizer, variables = CASES["yogi"].optimizer(**options), mixed_variables()

        def move(step):
            for slot in optimizer.variables[2 + step :: 3]:
                slot.value.data = slot.value.data.clone()

        return mixed_steps(optimizer, variables, between=move)

    assert_unchanged(run(fused=False), run(fused=True))


@pytest.mark.parametrize("option", ["plain", "skip_nonfinite", "ema"])
def test_torch_compile_takes_a_step_whole(option):
    """All variables, or some of them: Keras's warning of a None gradient cannot be traced."""
    import torch

    torch.compiler.reset()  # it compiles a function for a few optimizers at most

    def run(compiled):
        optimizer = CASES["yogi"].optimizer(**OPTIONS[option])
        variables = [keras.Variable(np.full(3, i + 1.0), dtype="float32") for i in range(4)]
        optimizer.build(variables)

        def step(gradients, start):
            with torch.no_grad():
                optimizer.apply(gradients, variables[start:])

        take = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
        infinite = np.inf if option == "skip_nonfinite" else 2.0
        for start, last in ((0, -1.0), (2, 0.25), (0, infinite), (0, 1.0)):
            take([tensor([i, 0.5, last], "float32") for i in range(start, 4)], start)
        return snapshot(optimizer, variables)

    assert_nearly_unchanged(run(compiled=False), run(compiled=True), 1e-6)


def test_stateless_apply_writes_nothing():
    function, arguments = stateless(CASES["adam"].optimizer())
    before = [[array(value) for value in values] for values in arguments]
    weights, own = function(*arguments)
    assert [array(w).tobytes() for w in weights] != [w.tobytes() for w in before[2]]
    for values, old in zip(arguments, before, strict=True):
        assert_unchanged(old, [array(value) for value in values])
    assert int(array(own[0])) == 1


@pytest.mark.parametrize("option", ["plain", "skip_nonfinite"])
def test_shapes_alone(option):
    """On PyTorch's "meta" device tensors have no numbers."""
    with keras.device("meta"):
        variables = [keras.Variable(keras.ops.zeros(shape)) for shape in [(3,), (2, 2)]]
        optimizer = CASES["yogi"].optimizer(**OPTIONS[option])
        optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)
    assert {v.value.device.type for v in optimizer.variables} == {"meta"}


def test_a_loop_without_no_grad_keeps_no_graph():
    model = sine_model(CASES["yogi"].optimizer())
    by_loop(model)
    assert [v.path for v in model.optimizer.variables if v.value.grad_fn is not None] == []
