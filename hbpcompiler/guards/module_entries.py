"""What of a torch module's own entries a call of it reads, besides the user's attributes."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

_HOOKS: dict[str, tuple[str, ...]] = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",), "_backward_hooks": (), "_backward_pre_hooks": (),
}
"""Where hooks are kept, and where is kept which of these are called in another way."""
HOOKS_OF_ALL_MODULES = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                        "_global_backward_pre_hooks")
"""Names in torch.nn.modules.module."""
_NOT_IN_CALLS = frozenset({"_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks",
                           "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"})
"""Those of saving and loading."""
ONLY_WEAK = "_flat_weight_refs"
"""By these torch's recurrent layers see that a weight has been replaced, which the entries of the weights tell, too; a
weak reference that is kept has torch.utils.swap_tensors refuse the weight."""
KEPT_BY_TORCH = _NOT_IN_CALLS.union(_HOOKS, itertools.chain(*_HOOKS.values()),
                                    ("_parameters", "_buffers", "_modules", "_is_full_backward_hook", ONLY_WEAK))
"""Entries of a module's __dict__ that are no attributes of the user's."""


def weights_seen(own: Mapping[str, Any]) -> list[Any]:
    """What a recurrent layer's ONLY_WEAK is of the weights that it has in a row."""
    weights = own.get("_flat_weights") or []
    return [None if weight is None else weakref.ref(weight) for weight in weights]


def hooks_read_by_calls(own: Mapping[str, Any]) -> list[str]:
    """Entries that hold hooks; where there are none of a kind, nothing is read of the ways in which they are called."""
    found = []
    for name, ways in _HOOKS.items():
        found += [name, *ways] if own.get(name) else [name]
    return [name for name in found if name in own]


def read_by_calls(own: Mapping[str, Any]) -> list[str]:
    """Entries whose values decide what a call does, the user's attributes among them."""
    unread = _NOT_IN_CALLS.union((ONLY_WEAK,), *_HOOKS.values()).difference(hooks_read_by_calls(own))
    if not own.get("_backward_hooks"):
        unread |= {"_is_full_backward_hook"}  # of which kind these are
    return [name for name in own if name not in unread]
