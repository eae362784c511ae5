"""Names of what nobody named come from the tensor and what is done to it; long paths are shortened, uniquely."""

import operator
import re

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.codegen.paths import LONGEST, Paths
from hbpcompiler.codegen.printer import ATOM
from hbpcompiler.codegen.temporaries import Temporaries
from hbpcompiler.compiler.program.writer import otherwise_named
from tests.codegen.test_program import SETTINGS
from tests.compiler.optimise.small import program, shaped


def test_long_paths_are_shortened_from_the_left():
    paths = Paths(["features.denseblock1.denselayer12.conv1.weight", "features.norm.weight", "classifier.weight"])
    assert paths.shortened("features.norm.weight") == "features.norm.weight"
    assert paths.shortened("features.denseblock1.denselayer12.conv1.weight") == "f.denseb1.densel12.co1.weight"
    assert paths.legend() == {"co": "conv", "denseb": "denseblock", "densel": "denselayer", "f": "features"}
    assert len(paths.shortened("features.denseblock1.conv1.weight")) <= LONGEST


@pytest.mark.parametrize(("run", "expected"), [
    (lambda writer, x: x.flatten(0, 1).square().sum(0).sqrt(), ["rows", "squared", "squared_sum", "root"]),
    (lambda writer, x: x.unfold(0, 1, 1).unfold(1, 1, 1).sqrt().unsqueeze(1),
     ["windows", "windows", "root", "root_col"]),
    (lambda writer, x: (1 - x.t()) - 2, ["turned", "complement", "complement_less"]),
])
def test_temporaries_are_called_after_their_tensors_and_how_these_lie_is_said_last(run, expected):
    graph = program(run, "S_linear")
    texts, found = {}, []
    names = Temporaries(texts)
    for node in graph.nodes:
        if node.op != "output":
            name = str(node.target) if node.op == "placeholder" else names.wish(node)
            texts[node] = (name, ATOM)
            names.gave(node, name)
            found.append(name)
    assert found == ["S_linear", *(f"S_linear_{word}" for word in expected)]


@pytest.mark.parametrize(("run", "expected"), [
    (lambda x: x.square().flatten(1), "S_linear_squared_flat"),
    (lambda x: x.flatten(1).square(), "S_linear_squared"),
    (lambda x: x.square().t().sqrt().unsqueeze(1), "S_linear_squared_root_col"),
    (lambda x: (x @ x).square(), "S_linear_product_squared"),
    (lambda x: (-x).clamp(min=0), "S_linear_negative_part"),
])
def test_what_is_done_within_a_line_is_said_too(run, expected):
    """All but the last node are written into its line, and have no name."""
    graph = program(lambda writer, x: run(x), "S_linear")
    texts, found = {}, ""
    names = Temporaries(texts)
    for node in graph.nodes:
        if node.op == "placeholder":
            texts[node] = (str(node.target), ATOM)
        elif node.op != "output":
            found = names.wish(node)
            texts[node] = (f"within({found})", ATOM)
    assert found == expected


def test_columns_that_are_added_to_others_are_called_after_where_they_come_from():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)
            self.wide = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.inner(x) + self.wide(x[:, None])[:, 0])

    batch = torch.randn(2, 4), torch.tensor([0, 1])
    code = hbp.compile(Skip(), quantities=["grad", "diag_ggn"], example_inputs=batch, verify=False).code
    assert "g_inner_back_row, sum_gradient_inner_weight, _ = torch.ops.aten.native_layer_norm_backward(" in code
    assert "S_inner_back = standardised_back_(" in code
    assert "stem_normalised_col = " in code
    assert "_back columns, taken back through the operation that made their value" in " ".join(code.split())


def test_loops_in_a_row_begin_alike():
    loops = re.findall(r"^ +for (\w+) in range\(0, ", SETTINGS["transformer"]().partition("class Program")[2], re.M)
    assert loops == ["first"] * 3


def test_a_gradient_in_front_of_a_pool_is_called_after_its_value_and_signs_after_where_they_are_born():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.SiLU(), nn.Flatten(),
                          nn.Linear(24, 3))
    batch = torch.randn(2, 1, 10, 10), torch.tensor([0, 2])
    limits = hbp.Limits(large_numbers=1, large_item_numbers=1)
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, limits=limits, verify=False).code
    assert "g_tanh_1_row = torch.ops.aten.max_pool2d_with_indices_backward(" in code
    assert " back = " not in code
    assert "sign_conv2d_3 = " in code
    assert "_n_n" not in code
    assert re.search(r"_n_\w+_n\b", code) is None
    assert not [line for line in code.splitlines() if line != line.rstrip()]


def test_a_wish_says_of_what():
    def two(writer, x):
        with writer.about("M_weight"):
            return otherwise_named(otherwise_named(x.sum(0), "_in_basis").square(), "eigenvalues_")

    graph = program(two, "S_linear")
    texts = {node: (str(node.target), ATOM) for node in graph.nodes if node.op == "placeholder"}
    names = Temporaries(texts)
    made = [node for node in graph.nodes if node.op == "call_method"]
    assert [names.wish(node) for node in made] == ["S_linear_in_basis", "eigenvalues_M_weight"]


def test_parts_of_a_sign_and_entries_are_called_so():
    parts = [lambda writer, x: x.clamp(min=0).sum(), lambda writer, x: (-x).clamp(min=0).sum(),
             lambda writer, x: x.clamp(min=1).sum(), lambda writer, x: x["all"].sum()]
    found = []
    for part in parts:
        graph = program(part, "R_linear")
        texts = {node: (str(node.target), ATOM) for node in graph.nodes if node.op == "placeholder"}
        node = next(node for node in graph.nodes if node.target == "clamp" or node.target is operator.getitem)
        found.append(Temporaries(texts).wish(node))
    assert found == ["R_linear_positive_part", "R_linear_negative_part", "R_linear_clamped", "R_linear_all"]


def test_windows_of_neighbourhoods_say_of_what():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.SiLU(), nn.Flatten(),
                          nn.Linear(6 * 25, 3))
    batch = torch.randn(2, 1, 14, 14), torch.tensor([0, 2])
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, verify=False).code
    assert re.findall(r"^ +(\w+_pieces) = ", code, re.M) == ["tanh_1_pieces", "d_tanh_1_pieces", "x_pieces"]
    assert "_windows_" not in code
    assert "_pieces the input windows that one position of the later convolution sees" in " ".join(code.split())


def test_a_second_derivative_is_called_so():
    model = nn.Sequential(nn.Linear(2, 3), nn.Mish(), nn.Linear(3, 2))
    batch = torch.randn(2, 2), torch.tensor([0, 1])
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, verify=False).code
    assert "R_linear_0 = g_mish_1.squeeze(1) * dd_mish_1  # [N, 3]" in code
    assert "dd_ second derivative" in code


def test_what_is_changed_in_place_has_no_name_that_was_true_before():
    def run(writer, x):
        kept = 1 - x
        return x * kept + kept.mul_(2)

    graph = program(run, "S_linear")
    texts, found = {}, {}
    names = Temporaries(texts)
    for node in graph.nodes:
        if node.op != "output":
            name = str(node.target) if node.op == "placeholder" else names.wish(node)
            texts[node] = (name, ATOM)
            found[str(node.target)] = names.kept(node)
            names.gave(node, name)
    assert not any(found.values())


def test_attention_reads_its_query_key_and_value_by_name():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.all = nn.Linear(4, 12)

        def forward(self, x):
            query, key, value = self.all(x).unflatten(2, (3, 4)).unbind(2)
            return nn.functional.scaled_dot_product_attention(query, key, value).mean(1)

    batch = torch.randn(2, 5, 4), torch.tensor([0, 1])
    code = hbp.compile(Heads(), quantities=["diag_ggn"], example_inputs=batch, verify=False).code
    assert re.findall(r"^ +(query|key|value) = \w+\.select\(2, ([012])\)", code, re.M) == [
        ("query", "0"), ("key", "1"), ("value", "2")]
    assert all(f"S_{name} = " in code for name in ("query", "key", "value"))


def test_a_kernels_columns_are_called_after_their_value_and_a_pools_places_after_the_pool():
    def compiled(between):
        model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), between, nn.Conv2d(4, 6, 3), nn.Sigmoid(),
                              nn.Flatten(), nn.LazyLinear(3))
        batch = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
        model(batch[0])
        return hbp.compile(model, quantities=["diag_h"], example_inputs=batch, verify=False).code

    assert "S_conv2d_2_rows = F.conv_transpose2d(" in compiled(nn.Conv2d(4, 4, 3))
    places = compiled(nn.MaxPool2d(2))
    assert "_, max_pool2d_2_indices_pieces = F.max_pool2d(" in places
    assert "with_indices_" not in places.replace("with_indices_backward", "")


def test_an_average_pools_derivative_is_one_call():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    batch = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, verify=False).code
    call = "S_silu_1 = avg_pool2d_back( S_avg_pool2d_2, size=[6, 6], kernel=[2, 2], stride=[2, 2], padding=[0, 0] )"
    assert f"{call} # [N, 2, 4, 6, 6]" in " ".join(code.split())


def test_no_loop_stands_in_a_loop():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.Sigmoid(),
                          nn.Flatten(), nn.Linear(24, 3))
    batch = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, verify=False).code
    depths = [len(indent) for indent in re.findall(r"^( *)for first\w* in range", code, re.M)]
    assert depths
    assert set(depths) == {4, 8}
    assert re.findall(r"^def (\w+_turn)", code, re.M) == ["conv2d_positions_turn", "conv2d_samples_turn"]
    assert "columns sqrt|R| e_k, back through the pieces; adds sum_{nk} sign T^2" in code


def test_a_scale_is_less_than_what_it_scales_and_what_a_wish_calls_otherwise_is_called_so():
    def run(writer, x):
        product = x * x.sin()
        root = otherwise_named(product.sqrt(), "root_of_all")
        return root.mul_(2), product * x.sum(1, True)

    graph = shaped(program(run, "S_linear"), (-1, 3))
    texts, found = {}, {}
    names = Temporaries(texts)
    for node in graph.nodes:
        if node.op != "output":
            name = names.wish(node) if node.op != "placeholder" else str(node.target)
            found[str(node)] = (name, names.kept(node))
            texts[node] = (name, ATOM)
            names.gave(node, name)
    assert found["mul"] == ("S_linear_product", "")
    assert found["mul_1"] == ("S_linear_product_scaled", "")
    assert found["sqrt"] == ("root_of_all", "")
    assert found["mul_"] == ("root_of_all_scaled", "")


def test_formulas_and_names_of_an_activation_agree():
    model = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 3))
    batch = torch.randn(2, 2), torch.tensor([0, 1])
    code = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, verify=False).code
    assert "density = (2 * math.pi) ** -0.5 * torch.exp(" in code
    assert "_squared_scaled" not in code


class Positions(nn.Module):
    """A copy, a view that only merges positions with samples, and rows of a parameter."""

    def __init__(self):
        super().__init__()
        self.places, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head((x + self.places[:5]).transpose(1, 2).contiguous().transpose(1, 2))


def test_values_that_are_others_again_are_called_as_those():
    """And rows of a parameter after the parameter."""
    model, X, y = Positions(), torch.randn(7, 5, 4), torch.randint(3, (7, 5))
    compiled = hbp.compile(model, lambda output, y: nn.functional.cross_entropy(output.reshape(-1, 3), y.reshape(-1)),
                           ["grad", "diag_ggn"])
    compiled(X, y)
    assert not re.search(r"(?m)\w_clone\b|\w_view\b|^ +each_sample", compiled.code)
    assert "S_head = S_loss" in compiled.code
    assert "g_places_each_sample" in compiled.code


def test_results_are_called_as_no_helper_function_is():
    """`gram` is a helper, too, which the program's factors call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 2), *(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(15)))
    model = nn.Sequential(*model, nn.Flatten(), nn.Linear(14, 2)).double()
    X, y = torch.randn(3, 1, 8, dtype=torch.float64), torch.tensor([0, 1, 0])
    compiled = hbp.compile(model, quantities=["kflr", "gram", "gram_mc", "sqrt_ggn"], example_inputs=(X, y))
    assert re.search(r"gram\(", compiled.code)
    assert "gram=gram_," in compiled.code
    result = compiled(X, y)
    columns = torch.cat([value.flatten(2) for value in result.sqrt_ggn.values()], 2).flatten(0, 1)
    torch.testing.assert_close(result.gram["all"].flatten(2).flatten(0, 1), columns @ columns.T)


def test_statistics_and_lying_are_said_in_names():
    """What a kernel returns is called as what it is, an axis less; two layouts of one tensor are told apart; what a
    large program keeps says by which operation it is, and a scale by the root of a size says so."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    batch = torch.randn(3, 1, 3, 3), torch.tensor([0, 1, 0])
    text = hbp.compile(norm, quantities=["grad", "diag_h", "variance"], example_inputs=batch).code
    assert "group_norm_1, group_norm_1_mean_row, group_norm_1_rstd_row = torch.native_group_norm(" in text
    assert "conv2d_0_normalised_shaped_col = conv2d_0_normalised_shaped.unsqueeze(1)" in text
    assert "conv2d_0_normalised_col = conv2d_0_normalised.unsqueeze(1)" in text
    assert not re.search(r"_(less|col_2|row_2) = ", text)
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), 3)
    model = nn.Sequential(layers, nn.Flatten(), nn.Linear(12, 2))
    text = hbp.compile(model, quantities=["grad"], example_inputs=(torch.randn(3, 3, 4), batch[1])).code
    saved = set(re.findall(r'saved\[path \+ "\.(\w+)"\]', text))
    assert saved >= {"self_attn_softmax", "norm1", "norm1_mean", "norm1_rstd"}
    assert "2 ** -0.5" in text


def test_what_meets_the_gradient_is_called_so_and_bases_are_no_factors():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3))
    batch = torch.randn(2, 1, 6, 6), torch.tensor([0, 1])
    code = hbp.compile(model, quantities=["cross", "ekfac", "diag_h"], example_inputs=batch, verify=False).code
    assert re.search(r"T_g_weight_0\w* = ", code)
    assert not re.search(r"T_S_weight_\w+ = .*\bg_", code)
    assert re.search(r"eigenbasis_B_weight_3 = torch\.linalg\.eigh", code)
    assert re.search(r"^ *squares_R_weight_0 = .*(\n.*)*?, einsum nop,nip->oi$", code, re.M)
    assert not re.search(r"\b(total|conv2d_0_product|\w+_weight_0_2) = ", code.partition("# ---- backward")[2])
