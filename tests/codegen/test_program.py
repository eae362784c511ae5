"""The generated file as a text: golden copies under review, what must be absent, and that it never varies."""

import ast
import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.codegen.networks import GRU, AlikeBlocks, Residual, Transformer, ViT
from tests.selection import slow

GOLDEN = Path(__file__).parents[1] / "golden"


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6), nn.Sigmoid(),
                         nn.Linear(6, 3))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def code(model, quantities, loss=None, mc_samples=1):
    shape = (1, 8, 8) if isinstance(model[0], nn.Conv2d) else (4,)
    batch = (torch.zeros(2, *shape), torch.tensor([0, 1]))
    if isinstance(loss, nn.MSELoss):
        batch = (batch[0], torch.zeros(2, 3))
    return hbp.compile(model, loss, quantities, example_inputs=batch, mc_samples=mc_samples).code


@functools.cache
def vit():
    torch.manual_seed(0)
    return hbp.compile(ViT(), quantities=["grad", "kfac", "batch_l2", "diag_h_split"],
                       example_inputs=(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])))


@functools.cache
def gru():
    torch.manual_seed(0)
    words = torch.zeros(2, 4, dtype=torch.long)
    return hbp.compile(GRU(), quantities=["kflr", "diag_ggn", "batch_grad"], example_inputs=(words, words))


def residual():
    torch.manual_seed(0)
    return hbp.compile(Residual().eval(), quantities=["grad", "batch_l2", "kfac"],
                       example_inputs=(torch.zeros(2, 2, 6, 6), torch.tensor([0, 1]))).code


def transformer():
    torch.manual_seed(0)
    return hbp.compile(Transformer(), quantities=["diag_ggn", "kfac"],
                       example_inputs=(torch.zeros(2, 6, dtype=torch.long), torch.tensor([0, 1]))).code


def alike_blocks():
    """With limits so low that a small network has what large ones have: tables, shared functions, products by
    oneDNN."""
    torch.manual_seed(0)
    limits = hbp.Limits(listed_parameters=8, shared_statements=4, onednn_multiply_adds=64, onednn_rows=4)
    return hbp.compile(AlikeBlocks().eval(), quantities=["grad", "kfac"], limits=limits,
                       example_inputs=(torch.zeros(2, 2, 6, 6), torch.tensor([0, 1]))).code


SETTINGS = {name: functools.cache(make) for name, make in {
    "alike_blocks": alike_blocks,
    "cnn_diag_h_kflr": lambda: code(cnn(), ["diag_h", "kflr"]),
    "cnn_first_order": lambda: code(cnn(), ["grad", "batch_l2", "variance"]),
    "mlp_everything": lambda: code(mlp(), list(hbp.QUANTITIES)),
    "mlp_mse_kfra": lambda: code(mlp(), ["kfra", "diag_ggn_mc"], nn.MSELoss(), mc_samples=3),
    "residual_network": residual,
    "transformer": transformer,
}.items()}
"""The texts under review, each generated once: that they are the same again has tests of its own."""
SMALL = {name: make for name, make in SETTINGS.items() if name != "alike_blocks"}
"""Those without tables."""


@pytest.mark.parametrize("name", list(SETTINGS))
def test_golden(name, request):
    text = re.sub(r"^Written by .*$", "Written by (versions)", SETTINGS[name](), flags=re.M)
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--refresh-golden"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    advice = "review the change, then pytest tests/codegen/test_program.py --refresh-golden"
    assert file.read_text(encoding="utf-8") == text, advice


def test_generated_again_it_is_the_same():
    assert code(cnn(), ["kflr", "diag_h", "variance"]) == code(cnn(), ["diag_h", "variance", "kflr", "diag_h"])


def test_it_imports_only_torch_and_typing():
    for make in SETTINGS.values():
        imports = re.findall(r"^\s*(?:import|from)\s+(\S+)", make(), flags=re.M)
        assert {name.split(".")[0] for name in imports} - {"math"} == {"typing", "torch"}


def test_loops_are_over_chunks_only():
    for make in SMALL.values():
        for line in make().partition("class Program")[2].splitlines():
            if line.strip().startswith(("for ", "while ", "if ")):
                loop = re.match(
                    r"\s+for \w+ in range\(0, \w+\.shape\[[01]\], (\d+)\):  # \1 (sample|column)s? a turn"
                    r"(, its largest tensor \d+\.\d MiB)?$", line)
                assert loop, line


@pytest.mark.parametrize(("quantities", "absent"), [
    (["grad"], ["S_", "M_", "R_", "G_", "indices_weight", "square", "einsum(\"nkpo", "torch.multinomial",
                "diag_embed"]),
    (["batch_l2"], ["S_", "M_", "R_", "variance", "sum_gradient"]),
    (["diag_ggn"], ["M_", "R_", "g_", "torch.multinomial", "factor"]),
    (["kfac"], ["S_", "R_", "g_", "squares"]),
    (["kflr"], ["M_", "R_", "g_", "squares"]),
    (["kfra"], ["M_", "R_", "g_", "squares"]),
])
def test_what_was_not_asked_for_is_absent(quantities, absent):
    text = code(cnn(), quantities).partition("class Program")[2]
    for word in absent:
        assert not re.search(rf"(?<![A-Za-z_]){re.escape(word)}", text), f"{word} in the program for {quantities}"


def test_no_gradient_for_a_piecewise_linear_network():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    text = code(model, ["diag_h"]).partition("class Program")[2]
    assert not re.search(r"(?<![A-Za-z_])[gR]_", text)


def test_first_layer_sends_nothing_to_the_data():
    text = code(mlp(), ["grad", "diag_h"])
    for prefix in ("g_x", "S_x", "R_x"):
        assert prefix not in text


def test_a_subset_costs_no_more_lines():
    """diag_ggn is a part of diag_h: asking for both adds its division by N and nothing else."""
    def work(quantities):
        backward = code(mlp(), quantities).split("# ---- backward ----")[1].split("# ---- results ----")[0]
        return [line for line in backward.splitlines() if " = " in line]

    assert work(["diag_h", "diag_ggn"]) == work(["diag_h"])


def test_the_factor_of_cross_entropy_has_one_column_less_than_classes():
    text = code(mlp(), ["diag_ggn"])
    assert "# [N, 2, 5]" in text
    assert "# [N, 3, 5]" not in text


def test_each_line_that_makes_a_tensor_names_its_shape():
    for make in SMALL.values():
        text = make()
        lines = text.splitlines()
        classes = {part.name: part for part in ast.parse(text).body if isinstance(part, ast.ClassDef)}
        for statement in ast.walk(classes["Program"]):
            if not isinstance(statement, ast.Assign):
                continue
            first = lines[statement.lineno - 1].strip()
            if not (first.startswith("N = ") or " = root_weights(" in first):  # those may be None
                behind = re.search(r"  # (\[.*\],?)( each)?$", lines[statement.end_lineno - 1])
                assert behind, ast.unparse(statement)
                targets = statement.targets[0].elts if isinstance(statement.targets[0], ast.Tuple) else [statement]
                named = [target for target in targets if ast.unparse(target) != "_"]
                assert len(named) > 1 if behind[2] else behind[1].count("[") == len(named), ast.unparse(statement)


def test_roots_of_weights_are_taken_once():
    for make in SETTINGS.values():
        program = make().partition("class Program")[2]
        assert program.count("root_weights(sample_weights)") <= 1
        assert program.count("root_weights(mean_weights(sample_weights))") <= 1


def deep(width):
    """Modules with long paths, whose parameters' names are long too."""
    inner = nn.ModuleDict({"a_long_module_name": nn.Linear(width, 3), "another_long_name": nn.Linear(3, width)})
    names = ["encoder_of_everything", "intermediate_layers", "first_of_many_blocks"]

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = inner
            for name in names:
                outer = nn.Module()
                outer.add_module(name, self.at)
                self.at = outer
            self.last = nn.Linear(width, 3)

        def forward(self, x):
            layers = self.at
            for name in reversed(names):
                layers = getattr(layers, name)
            return self.last(layers["another_long_name"](layers["a_long_module_name"](x).tanh()).tanh())

    batch = (torch.zeros(2, width), torch.tensor([0, 1]))
    return hbp.compile(Deep(), quantities=["grad", "variance", "diag_h", "kflr", "kfac"], example_inputs=batch).code


def test_short_forms_are_explained():
    assert "In names: " in deep(4)
    assert "In names: " not in code(mlp(), ["grad"])


@slow("large programs; the goldens are looked at in test_golden")
def test_no_line_is_too_long():
    for make in [*SETTINGS.values(), lambda: deep(4), lambda: vit().code, lambda: gru().code]:
        assert not [line for line in make().splitlines() if len(line) > 120]


def test_shapes_stand_behind_statements_and_are_whole():
    for text in [*(make() for make in SETTINGS.values()), deep(4), vit().code, gru().code]:
        lines = text.splitlines()
        assert not [line for line in lines if re.match(r"\s*# \[", line)]
        shapes = [line.rpartition("# ")[2].strip().removesuffix(" each") for line in lines if re.search(r"# +\[", line)]
        assert not [shape for shape in shapes if shape.count("[") != shape.count("]") or shape[-1] not in ",]"]
        assert not [line for line in lines if re.search(r"\w : \w+( \+ \w+)?[\],]", line)]


@slow("a large program")
def test_a_large_program_is_scripted_as_it_is_written():
    compiled = vit()
    batch = (torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        torch.manual_seed(0)
        expected = compiled.program(compiled.state, *batch)
        torch.manual_seed(0)
        found = torch.jit.script(compiled.program)(compiled.state, *batch)
    for name, value in expected.diag_h_split.items():
        assert all(map(torch.equal, found.diag_h_split[name], value)), name


def test_big_parameters_never_meet_the_batch_axis():
    """Memory of variance and diag_* must not grow with N times the parameter count."""
    model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 3))
    batch = (torch.zeros(2, 2, 8, 8), torch.tensor([0, 1]))
    text = hbp.compile(model, quantities=["variance", "diag_ggn"], example_inputs=batch).code
    theta = {"[N, 1, 16, 144]", "[N, 2, 16, 144]", "[N, 1, 3, 256]", "[N, 2, 3, 256]", "[N, 16, 144]"}
    assert not [line for line in text.splitlines() if any(shape in line for shape in theta)]


def test_individual_gradients_are_written_once():
    """The division by N is the cotangent's, not that of N gradients; a product with itself is left alone."""
    text = code(mlp(), ["batch_grad"])
    assert "div_(N)" not in text
    assert re.search(r'batch_grad_weight_2 = torch.einsum\("nko,ni->nkoi", \[g_\w+ / N, ', text)
    factor = next(line for line in code(mlp(), ["kfac"]).splitlines() if "A_kfac_weight_2 = " in line)
    assert factor.count("/") + factor.count("div_") == 1


def test_masks_of_signs_go_by_that_name_into_functions():
    heads = re.findall(r"^def \w+_back(?:_\d+)?\((.*?)\) ->", vit().code, re.M | re.S)
    assert any("negative: Tensor, positive: Tensor" in " ".join(head.split()) for head in heads)
