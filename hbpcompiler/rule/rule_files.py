"""Files and packages with rules of the user's: imported, and looked at for what could never be used."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hbpcompiler.errors import OptionError, RuleError, RuleWarning, listing
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.rule import LossRule, ModuleRule, Rule
from hbpcompiler.system.callers import level_of_caller

ENTRY_POINTS = "hbpcompiler.rules"
TORCHS_OWN = ("aten", "prims")
"""Namespaces in which nobody else registers operations."""


def rules_in(module: ModuleType) -> list[Rule | LossRule | ModuleRule | Decomposition]:
    """Every rule that a module defines, by itself or in a list, in order of definition."""
    found: list[Rule | LossRule | ModuleRule | Decomposition] = []
    for value in vars(module).values():
        for item in value if isinstance(value, list | tuple) else [value]:
            known = any(item is other for other in found)
            if isinstance(item, Rule | LossRule | ModuleRule | Decomposition) and not known:
                found.append(item)
    return found


def load(path: Path) -> ModuleType:
    """The module of a rule file. Raises OptionError for what is none, RuleError for one with mistakes."""
    if not path.is_file() or path.suffix != ".py":
        raise OptionError(f"rules: '{path}' is not a Python file. Pass the path of a rule file (see docs/rules.md).")
    file = path.resolve()
    name = "hbpcompiler_user_rules_" + hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise OptionError(f"rules: '{path}' cannot be imported")
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[name] = sys.modules.get(name), module  # where dataclasses and pickle look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise RuleError(f"rules: '{path}' failed to import: {_said(error)}") from error
    if not rules_in(module):
        raise OptionError(f"rules: '{path}' defines no Rule or LossRule at its top level")
    _check(module, f"rules: '{path}'")
    return module


def announced() -> Iterator[ModuleType]:
    """The modules that installed packages announce as entry points."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
        where = f"rules: {package} announces {entry.value} (entry point {entry.name} of {ENTRY_POINTS}), which"
        advice = "mend it or uninstall the package"
        try:
            module: Any = entry.load()
        except (Exception, SystemExit) as error:
            raise RuleError(f"{where} failed to import: {_said(error)}; {advice}") from error
        if not isinstance(module, ModuleType):
            raise RuleError(f"{where} is no module but a {type(module).__name__}; announce the module that has the "
                            f"rules, {entry.name} = {entry.module!r}")
        if not rules_in(module):
            raise RuleError(f"{where} defines no Rule or LossRule at its top level; {advice}")
        _check(module, where)
        yield module


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)})"
    return f"{type(error).__name__}: {error}"


def _check(module: ModuleType, where: str) -> None:
    """RuleError for rules of operations or arguments that torch does not have."""
    rules = rules_in(module)
    operations = [operation for rule in rules if not isinstance(rule, ModuleRule) for operation in rule.operations]
    unknown = list(unknown_operations(operations))
    if unknown:
        raise RuleError(listing(f"{where} has rules for operations that torch does not have:", unknown,
                                "A rule's name is that of torch.ops: torch.ops.aten.relu is 'aten.relu'."))
    hidden = [finding for rule in rules if isinstance(rule, Rule | LossRule) for finding in hidden_arguments(rule)]
    if hidden:
        raise RuleError(listing(f"{where} has rules that could not read an argument:", hidden))
    doubts = [finding for rule in rules if isinstance(rule, LossRule) for finding in strange_doubts(rule)]
    if doubts:
        raise RuleError(listing(f"{where} has doubts that no model would ever raise:", doubts))
    findings = [finding for rule in rules if isinstance(rule, Rule) for finding in strange_arguments(rule)]
    if findings:
        raise RuleError(listing(f"{where} speaks of arguments that its operations do not have, and would never "
                                "be used:", findings, "A rule names arguments as the operation's schema does; "
                                "`elementwise` takes the one that is called self: name it so in the operation."))


def unknown_operations(operations: Sequence[str]) -> Iterator[str]:
    """Those of torch's own that it does not have, and overloads that an operation does not have.

    A library may register its operations later: of its names one that is like another is worth a warning, no more.
    """
    overloads = {name.replace("::", ".") for name in torch._C._dispatch_get_all_op_names()}
    known = sorted({".".join(name.split(".")[:2]) for name in overloads})
    for operation in operations:
        namespace, bare = operation.split(".")[0], ".".join(operation.split(".")[:2])
        if bare in known:
            if operation.removesuffix(".default") not in overloads | {bare}:
                yield f"{operation}: {bare} has no such overload"
            continue
        names = [name.removeprefix(f"{namespace}.") for name in known if name.startswith(f"{namespace}.")]
        closest = difflib.get_close_matches(bare.removeprefix(f"{namespace}."), names, 1, 0.8)
        like = f" (is it {namespace}.{closest[0]}?)" if closest else ""
        if namespace in TORCHS_OWN:
            yield operation + like
        elif closest:
            warnings.warn(f"a rule is for {operation}, which torch does not have (yet): unless its library registers "
                          f"it, the rule will never be used{like}", RuleWarning, stacklevel=level_of_caller())


def strange_arguments(rule: Rule) -> Iterator[str]:
    """What `jac_t` names and no schema of the rule's operations does; nothing where torch does not know one of them."""
    known = _known_arguments(rule)
    for slot in rule.jac_t:
        if known and slot not in known:
            yield f"{', '.join(rule.operations)} has no argument '{slot}'; it has {', '.join(known)}"


def strange_doubts(rule: LossRule) -> Iterator[str]:
    """What `doubts` names and no graph could have under this name."""
    for operation in rule.doubts:
        if operation.count(".") != 1:
            yield f"'{operation}' in doubts: operations are named without overload there, as 'aten.sigmoid'"
        else:
            yield from (f"'{unknown}' in doubts: torch has no such operation"
                        for unknown in unknown_operations([operation]))


def hidden_arguments(rule: Rule | LossRule) -> Iterator[str]:
    """An argument that is called as the result is, which is what a rule's functions would read."""
    if "output" in _known_arguments(rule):
        yield (f"{', '.join(rule.operations)} has an argument 'output', and op.output is the operation's result: call "
               "the argument otherwise, 'self', say")


def _known_arguments(rule: Rule | LossRule) -> dict[str, None]:
    """Those of all of the rule's operations; none where torch does not know one of them."""
    known: dict[str, None] = {}
    for operation in rule.operations:
        namespace, name, *overload = operation.split(".")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is None:
            return {}
        for own in overload or packet.overloads():
            if hasattr(packet, own):
                known |= dict.fromkeys(argument.name for argument in getattr(packet, own)._schema.arguments)
    return known
