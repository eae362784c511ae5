"""What torch.export does again at each export, though nothing has changed since the last: done once for all tests.

It goes through all of torch's operations, several thousand, to see which are composite, and then gives each of those
two dozen kernels, for as long as the export lasts. That takes a fifth of the time of a small network.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.export.exported_program as exported
from torch._subclasses.fake_impls import op_implementations_dict as fake_rules

Kernels = dict[Any, Any]
Override = Callable[[Mapping[Any, Any]], AbstractContextManager[None]]


@dataclass
class Written:
    """What one operation had, and has during an export."""

    before: Kernels
    during: Kernels
    fake_rule: Any


class KeptOverrides:
    """In place of `_override_composite_implicit_decomp`: what that wrote is kept, and written again."""

    def __init__(self, override: Override) -> None:
        self.override = override
        self.kept: dict[frozenset[Any], dict[Any, Written]] = {}
        """By what the operations are decomposed to."""

    @contextmanager
    def __call__(self, decompositions: Mapping[Any, Any]) -> Iterator[None]:
        key = frozenset(decompositions.items())
        kept = self.kept.get(key)
        if kept is None or any(operation.py_kernels != written.before for operation, written in kept.items()) \
                or not fake_rules.keys().isdisjoint(decompositions):
            with self._recorded(key, decompositions):
                yield
            return
        for operation, written in kept.items():
            _replace(operation, written.during)
            fake_rules[operation] = written.fake_rule
        try:
            yield
        finally:
            for operation, written in kept.items():
                _replace(operation, written.before)
                fake_rules.pop(operation, None)

    @contextmanager
    def _recorded(self, key: frozenset[Any], decompositions: Mapping[Any, Any]) -> Iterator[None]:
        before = {operation: dict(operation.py_kernels) for operation in decompositions}
        all_are_new = fake_rules.keys().isdisjoint(decompositions)
        with self.override(decompositions):
            if all_are_new:
                self.kept[key] = {operation: Written(before[operation], dict(operation.py_kernels),
                                                     fake_rules[operation]) for operation in decompositions}
            yield


def _replace(operation: Any, kernels: Kernels) -> None:
    operation.py_kernels.clear()
    operation.py_kernels.update(kernels)
    operation._dispatch_cache.clear()


def keep_overrides() -> None:
    """From now on, in this process."""
    exported._collect_all_valid_cia_ops = functools.lru_cache(maxsize=1)(exported._collect_all_valid_cia_ops)
    exported._override_composite_implicit_decomp = KeptOverrides(exported._override_composite_implicit_decomp)
