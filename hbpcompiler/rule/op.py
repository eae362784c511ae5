"""`Op`: one operation as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Shape = tuple[int, ...]


class Op:
    """What a rule sees of one operation: its tensors, its attributes and its shapes.

    Tensors and attributes are read as attributes under the names of the ATen schema, the result as `op.output`, and
    whatever else the rule's `forward` saved under the name it gave. An absent optional argument is None.
    """

    def __init__(
        self,
        tensors: Callable[[str], Any] | Mapping[str, Any],
        attributes: Mapping[str, Any],
        shapes: Mapping[str, Any],
        *,
        index: int = 0,
        differentiated: bool = True,
        single: bool = False,
        active: frozenset[str] | None = None,
        batched: frozenset[str] | None = None,
        numbering: frozenset[str] = frozenset(),
        masks: frozenset[str] = frozenset(),
        one_by_one: bool = False,
    ) -> None:
        self._tensors = tensors if callable(tensors) else tensors.__getitem__
        self._attributes = dict(attributes)
        self._shapes = dict(shapes)
        self.index = index
        """Which result this is, for an operation with several (torch.split, batch norm)."""
        self.differentiated = differentiated
        """Whether any column crosses this operation: if not, `forward` need not save anything."""
        self.single = single
        """Whether none crosses it but one per sample, as gradients do, and by the rule's `backward` where it has one:
        `forward` may then save what serves that alone."""
        self._active = active
        self._batched = batched
        self._numbering, self._masks = numbering, masks
        self.one_by_one = one_by_one
        """Whether a residual's columns count one by one, as absolute values do, where otherwise their sum does: then
        they should be eigenvectors where that can be."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._attributes:
            return self._attributes[name]
        try:
            return self._tensors(name)
        except KeyError:
            known = sorted({*self._attributes, *self._shapes})
            raise AttributeError(f"this operation has no argument '{name}'; it has {', '.join(known)}") from None

    def argument(self, name: str) -> Any:
        """The argument `name`, also where Op itself has something of that name (`index` of torch.gather)."""
        return self.__getattr__(name)

    def shape(self, name: str) -> Shape:
        """The static shape of tensor `name`, without the sample axis if it has one; of a list, a list of shapes.

        A tensor of a list has the name "tensors.0"; so it has in `varies` and `has_samples`.
        """
        shape: Any = self._shapes[name] if name in self._shapes else [self._shapes[slot] for slot in self._slots(name)]
        return shape

    def shapes(self) -> list[Shape]:
        """The static shapes of all tensors."""
        return list(self._shapes.values())

    def _slots(self, name: str) -> list[str]:
        """The tensors that the argument `name` holds: itself, or those of a list."""
        return [slot for slot in self._shapes if slot == name or slot.startswith(f"{name}.")]

    def has(self, name: str) -> bool:
        """Whether the tensor argument `name` was given (an optional bias may be None)."""
        return bool(self._slots(name))

    def varies(self, name: str) -> bool:
        """Whether the tensor argument `name` carries derivatives: a column has to go there."""
        return any(self._active is None or slot in self._active for slot in self._slots(name))

    def has_samples(self, name: str) -> bool:
        """Whether the tensor argument `name` begins with the sample axis (a constant or a parameter does not)."""
        return any(self._batched is None or slot in self._batched for slot in self._slots(name))

    def numbers_samples(self, name: str) -> bool:
        """Whether every entry of the tensor argument `name` is the number of its sample, as in torch.arange(N)."""
        return name in self._numbering

    def is_mask(self, name: str) -> bool:
        """Whether the tensor argument `name` is boolean."""
        return name in self._masks

    def sampled(self) -> list[str]:
        """The tensor arguments that begin with the sample axis."""
        return [slot for slot in self._shapes if slot != "output" and self.has_samples(slot)]

    def varying(self) -> frozenset[str] | None:
        """All tensor arguments that carry derivatives; None if that is not known (in a rule's tests)."""
        return self._active

    def with_tensor(self, name: str, tensor: Any, *, shared: bool = False) -> Op:
        """The same operation with another tensor under this name; `shared`: a new one, without a sample axis."""
        shapes, batched = self._shapes, self._batched
        if shared:
            batched = frozenset(shapes) if batched is None else batched
            shapes = {**shapes, name: ()}
        return self._again(lambda other: tensor if other == name else self._tensors(other), shapes, batched)

    def counted_one_by_one(self) -> Op:
        """The same operation, of whose residual the columns count one by one."""
        return self._again(self._tensors, self._shapes, self._batched, one_by_one=True)

    def telling(self, note: Callable[[str, Any], None]) -> Op:
        """The same operation; `note(name, tensor or list of tensors)` learns what is read."""

        def tensors(name: str) -> Any:
            found = self._tensors(name)
            note(name, found)
            return found

        return self._again(tensors, self._shapes, self._batched)

    def bound_again(self, read: Callable[[Any, bool], Any]) -> Op:
        """The same operation, its tensors passed through `read(tensor, has a sample axis)` when they are first used.

        Of a list each tensor has one or not by itself. What `forward` saved counts as having a sample axis, a number
        that depends on the batch's size as having none.
        """

        def read_slot(slot: str, tensor: Any) -> Any:
            return read(tensor, slot not in self._shapes or self.has_samples(slot))

        def tensors(name: str) -> Any:
            found = self._tensors(name)
            if isinstance(found, list | tuple):
                return [None if tensor is None else read_slot(f"{name}.{position}", tensor)
                        for position, tensor in enumerate(found)]
            return read_slot(name, found)

        attributes = {name: read(item, False) for name, item in self._attributes.items()}
        return self._again(tensors, self._shapes, self._batched, attributes)

    def of_parts(self, split: Callable[[Any], Any]) -> Op:
        """The same operation where `split` makes samples of the parts that each sample has in its first axis."""

        def with_parts(name: str) -> bool:
            return name == "output" or name not in self._shapes or self.has_samples(name)

        def tensors(name: str) -> Any:
            return split(self._tensors(name)) if with_parts(name) else self._tensors(name)

        shapes = {name: shape[1:] if with_parts(name) else shape for name, shape in self._shapes.items()}
        return self._again(tensors, shapes, self._batched)

    def _again(self, tensors: Callable[[str], Any], shapes: Mapping[str, Any], batched: frozenset[str] | None,
               attributes: Mapping[str, Any] | None = None, one_by_one: bool = False) -> Op:
        return Op(tensors, self._attributes if attributes is None else attributes, shapes, index=self.index,
                  differentiated=self.differentiated, single=self.single, active=self._active, batched=batched,
                  numbering=self._numbering, masks=self._masks, one_by_one=one_by_one or self.one_by_one)


def first_tensor(operation: str) -> str | None:
    """The name of an operation's first tensor argument, by its schema; None if torch does not know the operation."""
    namespace, name, overload = (*operation.split("."), "")[:3]
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if packet is None:
        return None
    schema = getattr(packet, overload or packet.overloads()[0])._schema
    names = [argument.name for argument in schema.arguments if str(argument.type) == "Tensor"]
    return names[0] if names else None
