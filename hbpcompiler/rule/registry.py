"""Where rules are found: the files of `hbpcompiler.rules`, entry points, and the paths a user passes."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import hbpcompiler.rules
from hbpcompiler.errors import OptionError, OptionTypeError, RuleError, listing
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.rule import LossRule, ModuleRule, Rule

AnyRule = Rule | LossRule
ENTRY_POINTS = "hbpcompiler.rules"
_OURS = Path(hbpcompiler.rules.__path__[0])


def rules_in(module: ModuleType) -> list[AnyRule | ModuleRule | Decomposition]:
    """Every rule that a module defines, by itself or in a list, in order of definition."""
    found: list[AnyRule | ModuleRule | Decomposition] = []
    for value in vars(module).values():
        for item in value if isinstance(value, list | tuple) else [value]:
            known = any(item is other for other in found)
            if isinstance(item, Rule | LossRule | ModuleRule | Decomposition) and not known:
                found.append(item)
    return found


class Registry:
    """Operation name -> rule, and the file each rule came from."""

    def __init__(self) -> None:
        self.rules: dict[str, AnyRule] = {}
        self.files: dict[str, str] = {}
        self.modules: dict[type[nn.Module], ModuleRule] = {}
        self.decompositions: dict[str, Decomposition] = {}
        self.refusals: dict[str, str] = {}
        self.wrong_derivatives: dict[str, str] = {}

    def add(self, module: ModuleType) -> None:
        """Take a module's rules; two files for one operation are an error that names both. A rule and a decomposition
        of one operation, its second way, may be two, of one folder; a rule may come to a decomposition of ours."""
        file = str(module.__file__)
        self.refusals.update(getattr(module, "REFUSED", {}))
        self.wrong_derivatives.update(getattr(module, "WRONG_DERIVATIVES", {}))
        clashes = []
        for rule in rules_in(module):
            if isinstance(rule, ModuleRule):
                self.modules[rule.module] = rule
                continue
            for operation in rule.operations:
                kind: dict[str, Any] = self.decompositions if isinstance(rule, Decomposition) else self.rules
                known, before = kind.get(operation), self.files.get(operation, file)
                places = {Path(file).parent} if isinstance(rule, Decomposition) else {Path(file).parent, _OURS}
                if (known is not None and known is not rule) or Path(before).parent not in places:
                    clashes.append(f"{operation}: {before} and {file}")
                kind[operation] = rule
                if not isinstance(rule, Decomposition) or operation not in self.rules:
                    self.files[operation] = file
        if clashes:
            raise RuleError(listing("Two rules for one operation:", clashes, "Remove one of the two."))

    def copy(self) -> Registry:
        other = Registry()
        other.rules, other.files, other.modules = dict(self.rules), dict(self.files), dict(self.modules)
        other.decompositions, other.refusals = dict(self.decompositions), dict(self.refusals)
        other.wrong_derivatives = dict(self.wrong_derivatives)
        return other

    def find(self, operation: str, overload: str) -> AnyRule | None:
        """The rule for this overload ("aten.sum.dim_IntList"), or else the operation's."""
        return self.rules.get(f"{operation}.{overload or 'default'}") or self.rules.get(operation)

    def decomposition(self, operation: str, overload: str) -> Decomposition | None:
        """How this overload is written in others, where a rule file says so."""
        return self.decompositions.get(f"{operation}.{overload or 'default'}") or self.decompositions.get(operation)

    def refusal(self, operation: str, overload: str) -> str | None:
        """Why this overload has no rule and what to use instead, where a rule file says so (`REFUSED`)."""
        return self.refusals.get(f"{operation}.{overload or 'default'}") or self.refusals.get(operation)

    def file_of_others(self, operation: str, overload: str) -> str | None:
        """The file of the rule for this overload, if it is none of ours."""
        whole = f"{operation}.{overload or 'default'}"
        file = self.files.get(whole if whole in self.rules else operation)
        return None if file is None or Path(file).parent == _OURS else file

    def __iter__(self) -> Iterator[tuple[str, AnyRule]]:
        return iter(sorted(self.rules.items()))

    def __len__(self) -> int:
        return len(self.rules)

    def view(self) -> Mapping[str, AnyRule]:
        return self.rules


@cache
def builtin() -> Registry:
    """The rules that come with the library, and those that installed packages announce as entry points."""
    registry = Registry()
    for info in sorted(pkgutil.iter_modules(hbpcompiler.rules.__path__), key=lambda info: info.name):
        registry.add(importlib.import_module(f"hbpcompiler.rules.{info.name}"))
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        registry.add(entry.load())
    return registry


def with_rules(paths: Sequence[str | Path] | None) -> Registry:
    """The built-in rules and those of the user's files.

    Raises OptionTypeError or OptionError for something that is no path of a Python file with rules in it, and
    RuleError where an operation would have two.
    """
    if paths is None:
        return builtin()
    if isinstance(paths, str | Path) or not isinstance(paths, Sequence):
        raise OptionTypeError(f"rules must be a list of paths of rule files, not {paths!r}")
    if not paths:
        return builtin()
    registry = builtin().copy()
    for path in paths:
        if not isinstance(path, str | Path):
            raise OptionTypeError(f"rules must be paths of rule files, not {path!r}")
        registry.add(_load(Path(path)))
    return registry


def _load(path: Path) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        raise OptionError(f"rules: '{path}' is not a Python file. Pass the path of a rule file (see docs/rules.md).")
    file = path.resolve()
    name = "hbpcompiler_user_rules_" + hashlib.sha256(str(file).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise OptionError(f"rules: '{path}' cannot be imported")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RuleError(f"rules: '{path}' failed to import: {type(error).__name__}: {error}") from error
    if not rules_in(module):
        raise OptionError(f"rules: '{path}' defines no Rule or LossRule at its top level")
    unknown = [finding for rule in rules_in(module) if not isinstance(rule, ModuleRule)
               for finding in unknown_operations(rule.operations)]
    if unknown:
        raise RuleError(listing(f"rules: '{path}' has rules for operations that torch does not have:", unknown,
                                "A rule's name is that of torch.ops: torch.ops.aten.relu is 'aten.relu'."))
    findings = [finding for rule in rules_in(module) if isinstance(rule, Rule) for finding in strange_arguments(rule)]
    if findings:
        raise RuleError(listing(f"rules: '{path}' speaks of arguments that its operations do not have, and would never "
                                "be used:", findings, "A rule names arguments as the operation's schema does; "
                                "`elementwise` takes the one that is called self: name it so in the operation."))
    return module


def unknown_operations(operations: Sequence[str]) -> Iterator[str]:
    """Those that are misspelt, as it seems. A name like no other passes: its library may register it later."""
    overloads = {name.replace("::", ".") for name in torch._C._dispatch_get_all_op_names()}
    known = sorted({".".join(name.split(".")[:2]) for name in overloads})
    for operation in operations:
        bare = ".".join(operation.split(".")[:2])
        if bare not in known:
            closest = difflib.get_close_matches(bare, known, 1, 0.8)
            if closest or bare.startswith("aten."):
                yield operation + (f" (is it {closest[0]}?)" if closest else "")
        elif operation.removesuffix(".default") not in overloads | {bare}:
            yield f"{operation}: {bare} has no such overload"


def strange_arguments(rule: Rule) -> Iterator[str]:
    """What `jac_t` names and no schema of the rule's operations does; nothing where torch does not know one of them."""
    known: dict[str, None] = {}
    for operation in rule.operations:
        namespace, name, *overload = operation.split(".")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is None:
            return
        for own in overload or packet.overloads():
            if hasattr(packet, own):
                known |= dict.fromkeys(argument.name for argument in getattr(packet, own)._schema.arguments)
    for slot in rule.jac_t:
        if slot not in known:
            yield f"{', '.join(rule.operations)} has no argument '{slot}'; it has {', '.join(known)}"
