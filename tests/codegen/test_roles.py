"""What names say of where a value is, and what is left of them in a function."""

import ast
import re

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.naming import Names
from hbpcompiler.codegen.reuse import Reused
from hbpcompiler.codegen.roles import Where, is_moving, is_own, role, where_in
from hbpcompiler.codegen.streams import LETTERS, begins_as_stream
from hbpcompiler.compiler.plan.pieces import BEFORE_MEAN, OPERAND, PREFIX
from hbpcompiler.compiler.program.writer import named
from tests.compiler.optimise.small import program

WHERE = Where(frozenset({"b_0_n1", "norm"}), {"b_0_q_weight": "weight", "weight_2": "weight"})


def test_names_without_where():
    assert WHERE.without("negative_residual_b_0_q_weight") == "negative_residual"
    assert WHERE.without("negative_residual_b_0_q_weight", ["weight"]) == "negative_residual_weight"
    assert WHERE.without("S_weight_2") == "S"
    assert WHERE.without("b_0_n1_mean") == "x_mean"
    assert WHERE.without("b_0_q_weight") == "weight"
    assert WHERE.without("first") == "first"
    assert WHERE.bare("S_b_0_n1_drawn") == "S"
    assert WHERE.suffix("b_0_n1_mean") == "_mean"
    assert WHERE.suffix("b_0_n1") == ""


def test_a_module_may_be_called_as_a_kind_of_result():
    assert WHERE.says("norm_mean")
    assert not WHERE.says("norm_gradient_weight_2")
    assert WHERE.without("norm_gradient_weight_2") == "norm_gradient"
    assert not WHERE.says("squares_ggn_weight_2")


def test_an_operation_s_own_name_is_the_shortest_under_its_heading():
    hints = ["norm", "norm_mean", "norm_2"]
    assert [is_own(hint, hints) for hint in hints] == [True, False, True]


def test_all_columns_have_letters_that_no_path_begins_with():
    assert {*PREFIX.values(), BEFORE_MEAN, OPERAND} <= set(LETTERS)
    assert all(is_moving(f"{letter}_fc") for letter in LETTERS)
    assert not is_moving("b_0_n1")
    assert role("b_0_n1") == "x"
    assert begins_as_stream("g.linear")
    assert not begins_as_stream("gate.linear")


def test_where_is_what_operations_make_in_the_forward_pass():
    def two(writer, x):
        with writer.block("fc: linear", "forward"):
            made = named(x * 2, "fc")
        with writer.block("fc: linear", "backward"):
            return named(made * 3, "g_x")

    assert where_in(program(two, "S")).outputs == {"fc"}


def test_names_that_are_roles_already_are_given_again_in_a_module_s_function():
    """Otherwise each step back would have a name of its own, and all would live to its end."""
    def two(writer, x):
        first = named(x * 2, "g_relu")
        return named(first * 3, "g_conv")

    graph = program(two, "x")
    reused = Reused(graph, Names(), Outline())
    first, second = (node for node in graph.nodes if node.op == "call_function")
    assert [reused.name(first, "g"), reused.name(second, "g")] == ["g", "g"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + self.last(torch.tanh(self.norm(self.first(x))))


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage0, self.stage1, self.stage2 = Block(), Block(), Block()
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(self.stage0(x))).flatten(1))


def test_what_several_places_share_says_nothing_of_one():
    batch = torch.randn(2, 8, 4, 4), torch.tensor([0, 1])
    code = hbp.compile(Stages().eval(), quantities=["grad", "batch_l2", "kfac"], example_inputs=batch, verify=False,
                       limits=hbp.Limits(listed_parameters=1, shared_statements=1)).code
    shared = [part for part in ast.parse(code).body
              if isinstance(part, ast.FunctionDef) and re.search(r"at \d+ places", ast.get_docstring(part) or "")]
    names = {node.id for function in shared for node in ast.walk(function) if isinstance(node, ast.Name)}
    given = {argument.arg: ast.unparse(argument.annotation) for function in shared for argument in function.args.args}
    assert len(shared) > 5
    assert not [name for name in {*names, *given} if "stage" in name or name == "turned"]
    assert {"weight_turned", "sum_gradient_weight_flat", "x_normalised_col"} <= names
    assert (given["x"], given["mean_weights_root"]) == ("Tensor", "Optional[Tensor]")
    assert "turned_ " not in code
