"""Functions that differ in names of variables alone are one; what is computed, and what calls give by name, stays."""

import re
from dataclasses import replace

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.bodies import GIVEN, PLACES, Body, lengths_of, without_names

LINES = ['T = S.sum(0)  # [n, 3, 4]', 'total.add_(T, alpha=1 / N)', 'p[path + ".T"] = T']
ARGUMENTS = ["total: Tensor", "S: Tensor", "N: int"]


def renamed(lines, **names):
    for name, other in names.items():
        lines = [re.sub(rf"(?<![.\w\"]){name}\b(?!\")", other, line) for line in lines]
    return lines


def test_names_of_variables_do_not_matter_and_all_else_does():
    own = without_names(ARGUMENTS, LINES, ["T"])
    others = renamed(LINES, T="T_M_weight", S="M", total="sums")
    assert without_names(["sums: Tensor", "M: Tensor", "N: int"], others, ["T_M_weight"]) == own
    assert without_names(ARGUMENTS, [line.replace('".T"', '".U"') for line in LINES], ["T"]) != own
    assert without_names(ARGUMENTS, [line.replace("S.sum", "S.mean") for line in LINES], ["T"]) != own
    assert without_names(ARGUMENTS, LINES, ["S"]) != own
    assert without_names([*ARGUMENTS[:2], "chunk: int"], renamed(LINES, N="chunk"), ["T"]) != own, "given by name"


def test_lengths_in_shapes_that_differ_are_letters():
    first, other = ["T = S.sum(0)  # [n, 3, 4]"], ["T = S.sum(0)  # [n, 3, 5]"]
    assert without_names(ARGUMENTS, first, ["T"]) == without_names(ARGUMENTS, other, ["T"])
    bodies = [Body("turn", tuple(ARGUMENTS), "about", tuple(lines), ("T",), (lengths_of(lines),))
              for lines in (first, other)]
    text = bodies[0].with_member(bodies[1]).with_member(bodies[0]).text()
    assert "# [n, 3, a]" in text
    assert "# [n, 3, 4]" in bodies[0].text()


def test_what_a_function_is_given_has_shapes_that_stay_whole():
    given = [*(f"x_{number}  # [N, 64, 8, 8]" for number in range(40)), "g  # [N, 1, 4]", "M  # [N, 1, 4]"]
    about = f"conv2d, back, at {PLACES}.{GIVEN}columns back: S W"
    body = Body("conv2d_back", tuple(ARGUMENTS), about, tuple(LINES), ("T",), (lengths_of([*LINES, *given]),), 2,
                tuple(given))
    text = body.text()
    assert max(map(len, text.splitlines())) <= 120
    assert "x_39 [N, 64, 8, 8] each, g and M [N, 1, 4].  columns back: S W\"\"\"" in " ".join(text.split("\n    "))
    other = [line.replace("[N, 1, 4]", "[N, 1, 5]") for line in given]
    longer = [line.replace("[N, 1, 4]", "[N, 1, 4, 4]") for line in given]
    assert "g and M [N, 1, a]" in body.with_member(
        replace(body, given=tuple(other), lengths=(lengths_of([*LINES, *other]),))).text()
    assert "Of " not in body.with_member(
        replace(body, given=tuple(longer), lengths=(lengths_of([*LINES, *longer]),))).text()


class Recurrent(nn.Module):
    """Three linear operations whose loops are the same; the layer that runs through time is called g, as gradients."""

    def __init__(self):
        super().__init__()
        self.g, self.h = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 11)

    def forward(self, x):
        return self.h(self.g(x)[0]).transpose(1, 2)


def test_alike_turns_of_a_small_program_are_one_function_with_names_that_say_nothing_of_where():
    torch.manual_seed(0)
    batch = torch.randn(6, 4, 4), torch.randint(0, 11, (6, 4))
    compiled = hbp.compile(Recurrent(), quantities=["diag_ggn"], example_inputs=batch)
    assert "def linear_turn(total: Tensor, S: Tensor, x: Tensor, N: int) -> None:" in compiled.code
    assert len(re.findall(r"^def linear_turn", compiled.code, re.M)) == 1
    assert len(re.findall(r"^ +linear_turn\(", compiled.code, re.M)) == 3
    assert "linear_g = " in compiled.code, "g_linear would be read as a gradient"
    torch.jit.script(compiled.program)
