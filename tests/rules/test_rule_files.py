"""Files and packages with rules of the user's: what is taken, what is refused, and that right ones are used."""

import sys
import types
from dataclasses import dataclass
from importlib import metadata

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.rule import ModuleRule, Rule
from hbpcompiler.rule.registry import with_rules
from hbpcompiler.rule.rule_files import announced
from tests.agreement import agree
from tests.custom_op import SWIRL_RULE, Swirl
from tests.selection import few

APART = """
import torch
from hbpcompiler.rule.decomposition import Decomposition
APART = Decomposition(["hbptests.swirl"], lambda self: self + self.sin().square())
"""
PIECES = """
from hbpcompiler.rule import PIECES, Rule
RULE = Rule(["hbptests.swirl"], PIECES, jac_t={"self": lambda op, c: c * (1 + (2 * op.self).sin()).unsqueeze(1)},
            forward=lambda op: op.self + op.self.sin().square())
"""


def file(folder, text, name="rule.py"):
    path = folder / name
    path.write_text(text)
    return path


def agrees(model, quantities, **options):
    torch.manual_seed(0)
    model = model.double()
    X, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    compiled = hbp.compile(model, quantities=quantities, **options)
    agree(compiled(X, y), model, nn.CrossEntropyLoss(), [X], y)
    return compiled


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), Swirl(), nn.Linear(5, 3))


# -- decompositions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [APART, PIECES + APART], ids=["alone", "beside a rule of first derivatives"])
def test_a_decomposition_of_ones_own_operation_is_used(tmp_path, text):
    compiled = agrees(net(), ["grad", "diag_ggn", "diag_h"], rules=[file(tmp_path, text)])
    assert "derived_swirl" not in compiled.code
    assert "swirl(" not in compiled.code


@pytest.mark.parametrize(("function", "kind", "words"), [
    ("colour(self)", hbp.errors.RuleError, "decomposition of hbptests.swirl in .*function fails at line 4: NameError"),
    ("self.sin()", hbp.ProofError, "the decomposition of hbptests.swirl in .*rule.py, used in module '1'"),
])
def test_a_wrong_decomposition_is_noticed(tmp_path, function, kind, words):
    path = file(tmp_path, APART.replace("self + self.sin().square()", function))
    with pytest.raises(kind, match=f"(?s){words}"):
        agrees(net(), ["grad"], rules=[path])


# -- modules -------------------------------------------------------------------------------------------------------


class Sine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return torch.sin(x @ self.weight.t())


OF_SINE = """
import torch
from hbpcompiler.rule import ModuleRule
from tests.rules.test_rule_files import Sine
RULE = ModuleRule(Sine, lambda module, x: torch.sin(x @ module.weight.t()))
"""


def with_sine():
    torch.manual_seed(0)
    return nn.Sequential(Sine(), nn.Linear(5, 3))


def test_a_module_rule(tmp_path):
    agrees(with_sine(), ["grad", "diag_h"], rules=[file(tmp_path, OF_SINE)])


@pytest.mark.parametrize(("old", "new", "kind", "words"), [
    ("torch.sin(", "torch.cos(", hbp.ProofError, "the rule for Sine in .*rule.py, through whose forward module '0'"),
    ("module, x:", "x:", hbp.errors.RuleError, "rule for Sine in .*rule.py: forward fails at line 5: TypeError"),
    ("(x @ m", "(y @ m", hbp.errors.RuleError, "forward fails at line 5: NameError: name 'y' is not defined"),
    ("t()))", "t()), lambda module: 1 / 0)", hbp.errors.RuleError, "refuse fails at line 5: ZeroDivisionError"),
    ("(Sine,", "('Sine',", hbp.errors.RuleError, "module must be a class of nn.Module, such as nn.LSTM, not 'Sine'"),
    ("lambda module, x: torch.sin(x @ module.weight.t())", "None", hbp.errors.RuleError, "forward must be a function"),
    ("(Sine,", "(torch.nn.LSTM,", hbp.errors.RuleError, "Two rules.*LSTM: .*recurrent.py and .*rule.py"),
    ("RULE =", "OTHER = ModuleRule(Sine, lambda module, x: x)\nRULE =", hbp.errors.RuleError, "Two rules.*Sine: "),
])
def test_a_wrong_module_rule(tmp_path, old, new, kind, words):
    assert old in OF_SINE
    with pytest.raises(kind, match=f"(?s){words}"):
        agrees(with_sine(), ["grad"], rules=[file(tmp_path, OF_SINE.replace(old, new))])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.inner(x.unsqueeze(1))[0][:, 0])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        rows = x.unsqueeze(1)
        return self.last(self.inner(rows, rows, rows)[0][:, 0])


@few(1, "further cases of one kind")
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", [Recurrent, Attending])
def test_a_forward_that_somebody_assigned_is_what_runs(kind, verify):
    torch.manual_seed(0)
    model = kind()
    own = model.inner.forward
    model.inner.forward = lambda *given, **named: (2 * own(*given, **named)[0], None)
    agrees(model, ["grad", "batch_grad"], verify=verify)
    assert "forward" in model.inner.__dict__


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_with_a_dataclass_given_twice(tmp_path, monkeypatch):
    text = ("from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass Size:\n    number: int = 1\n" + SWIRL_RULE)
    path = file(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    agrees(net(), ["grad"], rules=[path, "rule.py", str(path)])


def test_a_copy_made_in_another_folder_finds_the_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    file(tmp_path, SWIRL_RULE)
    monkeypatch.chdir(tmp_path)
    compiled = hbp.compile(net(), quantities=["grad"], rules=["rule.py"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert compiled._given["rules"] == [tmp_path / "rule.py"]


def test_a_file_that_exits(tmp_path):
    path = file(tmp_path, "import sys\nsys.exit(3)\n")
    before = set(sys.modules)
    with pytest.raises(hbp.errors.RuleError, match=r"rule.py' failed to import: it calls sys.exit\(3\)"):
        with_rules([path])
    assert not [name for name in set(sys.modules) - before if name.startswith("hbpcompiler_user_rules")]


# -- packages ------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    name: str
    module: object
    value = "mylib.hbp_rules"
    dist = types.SimpleNamespace(name="mylib", version="1.0")

    def load(self):
        if isinstance(self.module, BaseException):
            raise self.module
        return self.module


def module(**names):
    found = types.ModuleType("mylib.hbp_rules")
    vars(found).update(names, __file__="hbp_rules.py")
    return found


def identity(name, argument="self"):
    return Rule([name], lambda op: None, jac_t={argument: lambda op, columns: columns})


@pytest.mark.parametrize(("found", "words"), [
    (ModuleNotFoundError("No module named 'mylib.hbp_rules'"), "failed to import: ModuleNotFoundError: No module"),
    (SystemExit(1), r"failed to import: it calls sys.exit\(1\)"),
    (identity("hbptests.swirl"), "is no module but a Rule; announce the module that has the rules"),
    (module(), "defines no Rule or LossRule"),
    (module(RULE=identity("aten.sigmoidd")), r"operations that torch does not have.*is it aten.sigmoid\?"),
    (module(RULE=identity("hbptests.swirl", "input")), "arguments that its operations do not have.*'input'"),
])
def test_a_package_with_a_mistake_is_named(monkeypatch, found, words):
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry("mylib", found)])
    with pytest.raises(hbp.errors.RuleError, match=rf"(?s)the package mylib 1.0 announces mylib.hbp_rules .*{words}"):
        list(announced())


def test_an_operation_may_be_registered_later(monkeypatch):
    rules = module(LATER=identity("hbptests.swirll"), OTHER=identity("hbptests.quite_another"))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry("mylib", rules)])
    with pytest.warns(hbp.RuleWarning) as warned:
        assert list(announced()) == [rules]
    assert [str(entry.message) for entry in warned] == [
        "a rule is for hbptests.swirll, which torch does not have (yet): unless its library registers it, the rule "
        "will never be used (is it hbptests.swirl?)"]


def test_a_package(monkeypatch):
    rules = module(RULE=ModuleRule(Sine, lambda module, x: x))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry("mylib", rules)])
    assert list(announced()) == [rules]
