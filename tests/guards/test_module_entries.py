"""Which entries of a module a call reads: all attributes, and of hooks only as much as there are."""

from __future__ import annotations

from typing import Any

from torch import nn

from hbpcompiler.guards.guards import Guards
from hbpcompiler.guards.module_entries import KEPT_BY_TORCH, hooks_read_by_calls, read_by_calls


def look(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook that changes nothing."""


def test_ways_of_hooks_are_read_where_there_are_hooks() -> None:
    module = nn.Linear(2, 3)
    way = "_forward_hooks_always_called"
    assert way not in hooks_read_by_calls(module.__dict__)
    assert way not in read_by_calls(module.__dict__)
    module.register_forward_hook(look)
    assert way in hooks_read_by_calls(module.__dict__)
    assert way in read_by_calls(module.__dict__)


def test_a_users_attributes_are_read() -> None:
    module = nn.Linear(2, 3)
    module._scale = 2.0
    assert {"_scale", "in_features", "training", "_parameters"} <= set(read_by_calls(module.__dict__))
    assert set(module.__dict__) - set(read_by_calls(module.__dict__)) <= KEPT_BY_TORCH


def test_every_change_of_entries_is_seen() -> None:
    def changes(module: nn.Module) -> list[Any]:
        hooks = module.register_forward_hook(look), module.register_forward_pre_hook(look)
        return [lambda: setattr(module, "late", 1), lambda: delattr(module, "late"),
                lambda: setattr(module, "in_features", 7), lambda: module.train(not module.training),
                hooks[0].remove, hooks[1].remove, lambda: module.register_forward_hook(look, always_call=True),
                lambda: module.register_forward_pre_hook(look, with_kwargs=True),
                lambda: module._forward_hooks_always_called.clear(),
                lambda: module.register_full_backward_hook(look),  # type: ignore[arg-type]
                lambda: module.__dict__.__setitem__("_forward_hooks", {}),
                lambda: (delattr(module, "in_features"), setattr(module, "in_feature", 7))]

    module = nn.Linear(2, 3)
    guards = Guards(module, nn.MSELoss())
    for number, change in enumerate(changes(module)):
        before = guards.current()
        assert guards.current() is before
        change()
        assert guards.current() is not before, number


def test_saving_and_loading_are_not_read() -> None:
    module = nn.Linear(2, 3)
    guards = Guards(module, nn.MSELoss())
    before = guards.current()
    module.register_load_state_dict_post_hook(lambda module, keys: None)
    assert guards.current() is before
