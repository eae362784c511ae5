"""What becomes of torch's core operations."""

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hbpcompiler.command import cli
from hbpcompiler.command.coverage import core_coverage, core_operations, name_of
from hbpcompiler.rule.registry import builtin
from hbpcompiler.rules.refused import DECOMPOSED, REFUSED
from hbpcompiler.testing.layer import CaseLayer
from tests.models.test_random_graphs import FEATURES, Graph, batch, check
from tests.selection import cases, few

# Of copy, torch differentiates x[:] = y only.
OWN = {f"{operation} {i}": (operation, made.cases[i]) for operation, made in builtin().decompositions.items()
       for i in (0, -1) if made.cases and operation not in builtin().rules and operation != "aten.copy"}
TORCHS = {operation: (operation, case) for operation, case in DECOMPOSED.items()}


@pytest.fixture(scope="module")
def verdicts():
    return core_coverage(builtin())


def test_every_core_operation_has_a_verdict(verdicts):
    assert len(verdicts) > 150
    assert [verdict.operation for verdict in verdicts if verdict.kind == "unknown" or not verdict.detail] == []


def test_what_is_refused_has_no_rule_and_is_core():
    core = {name_of(overload) for overload in core_operations()}
    names = {target for target, _ in core} | {f"{target}.{overload}" for target, overload in core}
    for operation in REFUSED:
        assert operation in names, f"{operation} is no core operation"
        target, _, overload = operation.removeprefix("aten.").partition(".")
        assert builtin().find(f"aten.{target}", overload) is None, f"{operation} has a rule"
        assert builtin().decomposition(f"aten.{target}", overload) is None, f"{operation} has a decomposition"


def test_what_is_decomposed_has_no_rule():
    for operation in DECOMPOSED:
        target, _, overload = operation.removeprefix("aten.").partition(".")
        assert builtin().find(f"aten.{target}", overload) is None


@few(1, "other decompositions")
@pytest.mark.parametrize("name", cases([*OWN, *TORCHS], lambda name: not name.endswith(" -1"), "a second use"))
def test_what_is_decomposed_agrees_with_brute_force(name):
    operation, case = {**OWN, **TORCHS}[name]
    torch.manual_seed(0)
    check(Graph([[CaseLayer(None, operation, case, FEATURES)]], "add", True).double(), *batch())


def test_a_whole_tensor_assigned_agrees_with_brute_force():
    class Assigned(nn.Sequential):
        def forward(self, x):
            before, after = torch.tanh(self[0](x)), self[1](x)
            before = before.clone()
            before[:, :2] = after[:, :2]
            before[:] = torch.sin(before + after)
            return before

    torch.manual_seed(0)
    model = Assigned(nn.Linear(FEATURES, 3), nn.Linear(FEATURES, 3)).double()
    model.inputs = list
    check(model, *batch())


def test_the_command_lists_them(verdicts, monkeypatch):
    monkeypatch.setattr(cli, "core_coverage", lambda registry: verdicts)  # which takes its time
    done = CliRunner().invoke(cli.main, ["rules", "--core"])
    assert done.exit_code == 0, done.output
    rows = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.startswith("│")}
    assert "linalg_vector_norm" in rows["aten._cdist_forward.default"]
    assert "matmul.py" in rows["aten.bmm.default"]
    assert "refused" in rows["aten.as_strided.default"]
    assert "no derivative" in rows["aten.argmax.default"]
