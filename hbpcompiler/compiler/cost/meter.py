"""Counts what torch does while it runs, on meta tensors too: multiply-adds, bytes moved, calls, memory held."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hbpcompiler.compiler.cost.figures import DEFAULT, Cost, Machine
from hbpcompiler.compiler.program.alike_calls import EVERYWHERE, AlikeCalls, storage_of, tensors_in
from hbpcompiler.compiler.program.kernels import ONEDNN_LINEAR
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.rules.shared.torch_operations import MANY_PRODUCTS, RELAYOUTS


@dataclass
class Counts:
    """What was done so far; the fields of `Cost`, as numbers."""

    multiply_adds: float = 0.0
    batched: float = 0.0
    kernel: float = 0.0
    traffic: float = 0.0
    """bytes of calls that touch more than the cache holds."""
    cached: float = 0.0
    """bytes of all other calls."""
    calls: float = 0.0
    fresh: float = 0.0
    """bytes of new tensors so large that their memory is not recycled."""

    def add(self, other: Counts, times: float = 1.0) -> None:
        self.multiply_adds += times * other.multiply_adds
        self.batched += times * other.batched
        self.kernel += times * other.kernel
        self.traffic += times * other.traffic
        self.cached += times * other.cached
        self.calls += times * other.calls
        self.fresh += times * other.fresh

    def seconds(self, machine: Machine = DEFAULT, limits: Limits = DEFAULT_LIMITS) -> float:
        """Predicted time."""
        moved = self.traffic + self.cached / limits.cached_speedup
        pages = self.fresh / machine.fresh_bytes_per_second
        return Cost(self.multiply_adds, moved, 0, self.calls, self.batched, self.kernel).seconds(1, machine) + pages


class Meter(TorchDispatchMode):
    """Counts the operations that run inside `with Meter() as meter`, and the memory that their results hold.

    Tensors made before count for nothing but traffic. Views are free. What a kernel allocates for itself is not seen,
    but for convolutions' copies.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        TorchDispatchMode.__init__(self)
        self.limits = limits
        self.counts = Counts()
        self.held = 0
        """Bytes that are held now."""
        self.peak = 0
        """The most that were held at once."""
        self._holders: dict[int, int] = {}  # storage -> live tensors that show it
        self._alike = AlikeCalls(EVERYWHERE)
        self._formulas: dict[Any, Any] = {}
        self._whole: set[Any] = set()
        """Operations that are no composition of others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._formulas:
            self._formulas[func] = _formula(func)
        formula = self._formulas[func]
        if formula is None and func not in self._whole:
            with self:
                pieces = func.decompose(*args, **kwargs)
            if pieces is not NotImplemented:
                return pieces
            self._whole.add(func)
        given = tensors_in((args, [*kwargs.values()]))
        is_without_memory = bool(given) and all(tensor.is_meta for tensor in given)
        result = self._alike.result(func, args, kwargs, lambda: func(*args, **kwargs)) if is_without_memory else (
            func(*args, **kwargs))
        is_kernel, by_pixels = func._overloadpacket in RELAYOUTS, any(map(_is_channels_last, given))
        if is_kernel and by_pixels:
            result = torch.utils._pytree.tree_map_only(Tensor, _channels_last, result)
        made = tensors_in(result)
        known = {storage_of(tensor) for tensor in given}
        fresh = [tensor for tensor in made if storage_of(tensor) not in known]
        if fresh or func._schema.is_mutable:
            adds = formula(*args, **kwargs, out_val=result) / 2 if formula is not None else 0.0
            self._count(func, adds, given, made)
            sizes = [tensor.untyped_storage().nbytes() for tensor in fresh]
            self.counts.fresh += sum(size for size in sizes if size > self.limits.recycled_bytes)
        for tensor in made:
            if tensor in _Identity(fresh) or storage_of(tensor) in self._holders:
                self._hold(tensor)
        if is_kernel and not by_pixels:
            self.peak = max(self.peak, self.held + _copied(func, args, given, made))
        return result

    def _count(self, func: Any, adds: float, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        small = func._overloadpacket in MANY_PRODUCTS and len(given[0]) > 1
        moved = float(sum(tensor.numel() * tensor.itemsize for tensor in (*given, *made)))
        large = moved > self.limits.cache_bytes
        self.counts.add(Counts(adds, adds if small else 0.0, adds if func._overloadpacket in RELAYOUTS else 0.0,
                               moved if large else 0.0, 0.0 if large else moved, 1.0))

    def _hold(self, tensor: Tensor) -> None:
        storage, size = storage_of(tensor), tensor.untyped_storage().nbytes()
        if storage not in self._holders:
            self.held += size
            self.peak = max(self.peak, self.held)
        self._holders[storage] = self._holders.get(storage, 0) + 1
        weakref.finalize(tensor, self._release, storage, size)

    def _release(self, storage: int, size: int) -> None:
        self._holders[storage] -= 1
        if not self._holders[storage]:
            del self._holders[storage]
            self.held -= size


def _copied(func: Any, args: Sequence[Any], given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Bytes of a convolution's copies in its own layout: of what it reads, then, when those are gone, of what it makes.

    Measured with oneDNN on processors. A derivative with respect to the input does not read the input.
    """
    unread = func._schema.arguments[-1].name == "output_mask" and not args[-1][1]
    read = [tensor for tensor in given if not (unread and tensor is args[1])]
    return max(sum(tensor.numel() * tensor.itemsize for tensor in tensors) for tensors in (read, made))


def _is_channels_last(tensor: Tensor) -> bool:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return channels_last and not tensor.is_contiguous()


def _channels_last(tensor: Tensor) -> Tensor:
    """What convolutions make of a weight in that layout; on meta tensors torch looks at the input's alone."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.is_meta and tensor.dim() == 4 else tensor


def _formula(func: Any) -> Any:
    """torch's count of floating point operations; of addmm_ that of addmm, of oneDNN's product a product's."""
    packet = func._overloadpacket
    if str(packet) == ONEDNN_LINEAR:
        return lambda x, *rest, out_val, **others: 2 * out_val.numel() * x.shape[-1]
    is_torchs = packet._qualified_op_name.startswith("aten::")
    plain = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), packet) if is_torchs else packet
    return flop_registry.get(packet, flop_registry.get(plain))


class _Identity:
    """Membership by identity: tensors compare their elements."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.ids = {id(tensor) for tensor in tensors}

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self.ids
