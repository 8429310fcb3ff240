"""The fused engine on PyTorch: small variables joined, large ones in pieces.

An operation on a thousand weights takes no longer than starting it. So the slots of small variables
lie end to end in shared arrays, and each slot's tensor is a view of its part. A step concatenates
the gradients in the same order and calls the rule once. An operation on a million weights writes
its result to fresh memory. So large variables are updated in pieces that stay in a cache.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from keras.src.backend.common.stateless_scope import in_stateless_scope

from keras_yogi.engines.base import Backend, Engine, Group, Limits, Scalars, chunks
from keras_yogi.half_precision import compute_dtype
from keras_yogi.rules import Rule, StepScalars


class TorchBackend(Backend):
    """Joins small variables of one dtype and device. Half precision is updated unfused."""

    limits = Limits(pack_up_to=32_768, array_up_to=131_072)

    def unsupported_reason(self) -> str | None:
        return None

    def engine(self, group: Group, packs: Mapping[int, Any], limits: Limits | None) -> Engine:
        if limits is None:
            return super().engine(group, packs, limits)
        tensors = {index: variable.value for index, variable in group.variables.items()}
        dtypes = {index: str(variable.dtype) for index, variable in group.variables.items()}
        full = {i: t for i, t in tensors.items() if dtypes[i] == compute_dtype(dtypes[i])}
        small = {i: t for i, t in full.items() if t.numel() <= limits.pack_up_to}
        large = group.arguments_for(i for i in full if i not in small)
        return Engine(
            [
                *(JoinedGroup(*group.arguments_for(i)) for i in chunks(small, limits.array_up_to)),
                PiecewiseGroup(*large, limits.array_up_to),
                Group(*group.arguments_for(i for i in tensors if i not in full)),
            ]
        )


def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors, flattened and concatenated."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split(joined: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The reverse of `join`: views of the parts, in the shapes of the tensors in `like`."""
    parts = torch.split_with_sizes(joined, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class JoinedGroup(Group):
    """Small variables of one dtype on one device, updated by one call of the rule."""

    def __init__(
        self,
        variables: Mapping[int, Any],
        slots: Mapping[int, Sequence[Any]],
        lazy_rows: bool,
    ) -> None:
        super().__init__(variables, slots, lazy_rows)
        self._position = {index: position for position, index in enumerate(variables)}
        # By slot in the rule's order, then by variable. Keras assigns to these tensors in place.
        self._tensors = [[s.value for s in of_all] for of_all in zip(*slots.values(), strict=True)]
        self._arrays: list[torch.Tensor] = []
        self._addresses: list[list[int]] = []
        self._share_arrays()

    def _share_arrays(self) -> None:
        """Makes the slots' tensors views of shared arrays, unless they are already.

        They no longer are if one of them got new memory, for example on another device.
        """
        if self._addresses == [[t.data_ptr() for t in tensors] for tensors in self._tensors]:
            return
        self._arrays = [join(tensors) for tensors in self._tensors]
        for array, tensors in zip(self._arrays, self._tensors, strict=True):
            for tensor, part in zip(tensors, split(array, tensors), strict=True):
                tensor.data = part
        self._addresses = [[t.data_ptr() for t in tensors] for tensors in self._tensors]

    def update(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, torch.Tensor]) -> None:
        weights = [self.variables[index].value for index in gradients]
        tensors = [[of_all[self._position[i]] for i in gradients] for of_all in self._tensors]
        everything = [*weights, *gradients.values(), *(t for of_slot in tensors for t in of_slot)]
        of_dtype = scalars[compute_dtype(weights[0].dtype)]
        if not _may_write(everything, of_dtype):
            super().update(rule, scalars, gradients)
            return
        with torch.no_grad():
            if not torch.compiler.is_compiling():  # addresses cannot be traced
                self._share_arrays()
            is_whole = len(gradients) == len(self.variables)
            old = self._arrays if is_whole else [join(of_slot) for of_slot in tensors]
            flat_gradient = join(list(gradients.values())).to(old[0].dtype)
            flat_weights = join(weights) if rule.reads_weights else torch.zeros_like(flat_gradient)
            flat_weights, new = rule.update(flat_gradient, flat_weights, tuple(old), of_dtype)
            for array, of_slot, value in zip(old, tensors, new, strict=True):
                if is_whole:
                    array.copy_(value)
                else:
                    torch._foreach_copy_(of_slot, split(value, of_slot))
            write = torch._foreach_copy_ if rule.reads_weights else torch._foreach_add_
            write(weights, split(flat_weights, weights))


class PiecewiseGroup(Group):
    """Large variables, updated in pieces."""

    def __init__(
        self,
        variables: Mapping[int, Any],
        slots: Mapping[int, Sequence[Any]],
        lazy_rows: bool,
        piece: int,
    ) -> None:
        super().__init__(variables, slots, lazy_rows)
        self._piece = piece

    def update(self, rule: Rule, scalars: Scalars, gradients: Mapping[int, torch.Tensor]) -> None:
        for index, gradient in gradients.items():
            stored = [each.value for each in self.storage(index)]
            of_dtype = scalars[compute_dtype(stored[0].dtype)]
            if torch.compiler.is_compiling() or not (
                all(tensor.is_contiguous() for tensor in stored)
                and _may_write([*stored, gradient], of_dtype)
            ):
                super().update(rule, scalars, {index: gradient})
                continue
            with torch.no_grad():
                flat = [tensor.flatten() for tensor in (gradient.to(stored[0].dtype), *stored)]
                for piece, *parts in zip(*(t.split(self._piece) for t in flat), strict=True):
                    weights, new = rule.update(piece, parts[0], tuple(parts[1:]), of_dtype)
                    for part, value in zip(parts, (weights, *new), strict=True):
                        part.copy_(value)


def _may_write(tensors: Sequence[torch.Tensor], scalars: StepScalars) -> bool:
    """Whether tensors can be computed with and written to in place.

    Not inside a `keras.StatelessScope`; nor if they lie on several devices, where `Group.update`
    lets Keras move values to its default device.
    """
    device = scalars.step.device
    return not in_stateless_scope() and all(tensor.device == device for tensor in tensors)
