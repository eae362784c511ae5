"""Where rules are found: the files of `hbpcompiler.rules`, entry points, and the paths a user passes."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import hbpcompiler.rules
from hbpcompiler.errors import OptionTypeError, RuleError, listing
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.faults import any_with_names
from hbpcompiler.rule.rule import LossRule, ModuleRule, Rule
from hbpcompiler.rule.rule_files import announced, load, rules_in

AnyRule = Rule | LossRule
_OURS = Path(hbpcompiler.rules.__path__[0])


class Registry:
    """Operation name -> rule, and the file each rule came from."""

    def __init__(self) -> None:
        self.rules: dict[str, AnyRule] = {}
        self.files: dict[str, str] = {}
        self.modules: dict[type[nn.Module], ModuleRule] = {}
        self.module_files: dict[type[nn.Module], str] = {}
        self.decompositions: dict[str, Decomposition] = {}
        self.refusals: dict[str, str] = {}
        self.wrong_derivatives: dict[str, str] = {}
        self._named: dict[int, tuple[Any, Any]] = {}
        """Rules of the user's by identity: as they were written, and as they are called."""

    def add(self, module: ModuleType) -> None:
        """Take a module's rules; two files for one operation are an error that names both. A rule and a decomposition
        of one operation, its second way, may be two, of one folder; a rule may come to a decomposition of ours."""
        file = str(module.__file__)
        self.refusals.update(getattr(module, "REFUSED", {}))
        self.wrong_derivatives.update(getattr(module, "WRONG_DERIVATIVES", {}))
        clashes = []
        for written in rules_in(module):
            rule = self._with_names(written, file)
            if isinstance(rule, ModuleRule):
                if self.modules.get(rule.module, rule) is not rule:
                    clashes.append(f"{rule.module.__name__}: {self.module_files[rule.module]} and {file}")
                self.modules[rule.module], self.module_files[rule.module] = rule, file
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
            raise RuleError(listing("Two rules for one operation or module:", clashes, "Remove one of the two."))

    def _with_names(self, rule: Any, file: str) -> Any:
        """A rule of the user's that says where it fails, one object for one rule; ours as it is."""
        ours = [*self.rules.values(), *self.decompositions.values(), *self.modules.values()]
        if Path(file).parent == _OURS or any(rule is other for other in ours):
            return rule
        return self._named.setdefault(id(rule), (rule, any_with_names(rule, file)))[1]

    def copy(self) -> Registry:
        other = Registry()
        other.rules, other.files, other.modules = dict(self.rules), dict(self.files), dict(self.modules)
        other.decompositions, other.refusals = dict(self.decompositions), dict(self.refusals)
        other.wrong_derivatives, other.module_files = dict(self.wrong_derivatives), dict(self.module_files)
        other._named = dict(self._named)
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

    @property
    def has_rules_of_others(self) -> bool:
        """Whether some of them are none of ours."""
        return bool(self._named)

    def file_of_module(self, module: type[nn.Module]) -> str | None:
        """The file of the rule for modules of this very class, if it is none of ours."""
        file = self.module_files.get(module)
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
    for module in announced():
        registry.add(module)
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
    files: dict[Path, Path] = {}
    for path in paths:
        if not isinstance(path, str | Path):
            raise OptionTypeError(f"rules must be paths of rule files, not {type(path).__name__}: the path of a Python "
                                  "file that holds it")
        files.setdefault(Path(path).resolve(), Path(path))
    for path in files.values():
        registry.add(load(path))
    return registry
