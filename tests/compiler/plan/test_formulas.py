"""The formula of a block says what its steps do, and nothing that they do not."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.formulas import BORN, CLOSINGS, MATRICES, WIDENED, formulas
from hbpcompiler.quantities import SUM
from hbpcompiler.rule import NO_DERIVATIVE, Rule
from hbpcompiler.rule.registry import builtin
from tests import hand_made


def headings(model, quantities, X, y, loss=None):
    code = hbp.compile(model, loss, quantities, example_inputs=(X, y)).code
    lines, found = code.partition("# ---- backward ----")[2].splitlines(), {}
    for number, line in enumerate(lines):
        if line.startswith("        # ") and ": " in line:
            text = line.strip("# ")
            while lines[number + 1].startswith("        #   "):
                number += 1
                text += " " + lines[number].strip("# ")
            title, _, formula = text.partition("    ")
            found[title] = formula
    return found


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_no_steps_have_no_formulas():
    assert formulas([], hand_made.matched(hand_made.mlp())) == {}
    assert CLOSINGS[SUM] == "sum_n T"


X, Y = torch.randn(2, 4), torch.tensor([0, 1])


@pytest.mark.parametrize(("quantity", "expected", "absent"), [
    ("grad", "sum_n T", "B ="), ("batch_l2", "sum_{theta} T^2", "sum_n T"), ("diag_ggn", "sum_{nk} T^2", "A ="),
    ("kflr", "B = sum S S^T, A = sum U U^T", "sum_{nk}"),
])
def test_closings(quantity, expected, absent):
    formula = headings(mlp(), [quantity], X, Y)["2: linear"]
    assert expected in formula
    assert absent not in formula


def test_elementwise_and_loss():
    found = headings(mlp(), ["diag_h"], X, Y)
    assert found["1: tanh"] == ("columns back: d S,  d = y'(x) = 1 - y^2;  "
                                "residual: R = g dd,  dd = y''(x) = -2 d y")
    assert found["loss: cross_entropy_loss"].startswith("l_n: -log p_y,  p = softmax(x);  g = grad l_n;")
    assert found["loss: cross_entropy_loss"].endswith("sum_k S S^T = Hessian of l_n in the model's output")
    assert "residual" not in headings(mlp(), ["diag_ggn"], X, Y)["1: tanh"]


def test_eigenvectors_and_clipping_say_what_they_are():
    found = headings(mlp(), ["ekfac"], X, Y)["2: linear"]
    assert ("weight: T = S[nko] U[ni], sum_{nk} (Q_B^T T Q_A)^2, Q_B eigenvectors of sum S S^T, Q_A of sum U U^T;  "
            "bias: T = S[nko], Q_B and eigenvalues of sum T T^T") in found
    code = hbp.compile(mlp(), quantities=["clipped_grad"], example_inputs=(X, Y)).code
    heading = "# clipping    clip[n] = min(1, max_norm / |g_n|), norms over all parameters\n"
    assert code.count(heading) == 1
    below = code.partition(heading)[2].splitlines()
    assert [line.split(" = ")[0].strip() for line in below[:3]] == ["norms", "clip", ""]
    assert "# 2: linear    second phase: sum_n clip[n] T" in code.partition(heading)[2]


LABELS = "-sum_c q_c log p_c,  p = softmax(x),  q = e_y, "
EACH, EACH_OF = torch.tensor([1.0, 2.0, 0.5]), torch.full((2, 3), 0.2)


@pytest.mark.parametrize(("loss", "target", "expected"), [
    (nn.CrossEntropyLoss(label_smoothing=0.1), Y, LABELS + "smoothed"),
    (nn.CrossEntropyLoss(EACH), Y, LABELS + "weighted"),
    (nn.CrossEntropyLoss(EACH, label_smoothing=0.1), Y, LABELS + "smoothed and weighted"),
    (nn.CrossEntropyLoss(), EACH_OF, "-sum_c q_c log p_c,  p = softmax(x),  q = y"),
    (nn.BCEWithLogitsLoss(), EACH_OF, "log(1 + e^x) - y x"),
    (nn.BCEWithLogitsLoss(EACH), EACH_OF, "weight (log(1 + e^x) - y x)"),
    (nn.BCEWithLogitsLoss(pos_weight=EACH), EACH_OF, "pos_weight y log(1 + e^-x) + (1 - y) log(1 + e^x)"),
    (lambda o, y: F.binary_cross_entropy(o.sigmoid(), y, EACH), EACH_OF, "-weight (y log x + (1 - y) log(1 - x))"),
    (nn.PoissonNLLLoss(), EACH_OF, "e^x - y x"),
    (lambda o, y: F.poisson_nll_loss(o.exp(), y, log_input=False), EACH_OF, "x - y log x"),
])
def test_a_loss_says_what_it_is_of_this_use(loss, target, expected):
    found = headings(mlp(), ["grad"], X, target, loss)
    (formula,) = [" ".join(text.split()) for text in found.values() if text.startswith("l_n")]
    assert formula.startswith(f"l_n: {' '.join(expected.split())}; g = ")


@pytest.mark.parametrize(("loss", "quantities", "expected"), [
    (nn.CrossEntropyLoss(), ["kflr"], "sum_k S S^T = Hessian"),
    (nn.CrossEntropyLoss(), ["kfac"], "E sum_k M M^T = Hessian"),
    (nn.CrossEntropyLoss(), ["kfra"], "sum_k H H^T = Hessian"),
    (nn.CrossEntropyLoss(), ["kfra", "kflr", "kfac"], "sum_k S S^T = E sum_k M M^T = Hessian"),
    (nn.MSELoss(), ["kfra"], "diag(H) = Hessian"),
    (nn.MSELoss(), ["diag_ggn", "kfac"], "diag(S) = E sum_k M M^T = Hessian"),
    (nn.HuberLoss(), ["kfac"], "diag(M) = Hessian"),
])
def test_what_the_loss_sends_off_is_a_root_of_its_hessian(loss, quantities, expected):
    target = Y if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(2, 3)
    found = headings(mlp(), quantities, X, target, loss)
    (formula,) = [text for title, text in found.items() if title.startswith("loss")]
    assert f" {expected} of l_n in the model's output" in formula


@pytest.mark.parametrize(("loss", "quantity", "expected"), [
    (lambda o, y: F.mse_loss(o.sigmoid(), y), "kflr", "l_n: (x - y)^2;  g = grad l_n;  diag(S) = Hessian of l_n in x"),
    (lambda o, y: F.mse_loss(o.t(), y.t()), "kflr", "l_n: (x - y)^2;  diag(S) = Hessian of l_n in x"),
    (lambda o, y: 3 * F.mse_loss(o, y), "diag_h",
     "l_n: (x - y)^2;  g = 3 grad l_n;  diag(S) = 3 Hessian of l_n in the model's output"),
    (lambda o, y: 1 - F.mse_loss(o, y), "diag_h",
     "l_n: (x - y)^2;  g = -grad l_n;  diag(S) = -Hessian of l_n in the model's output"),
    (lambda o, y: -F.mse_loss(o, y), "kfac",
     "l_n: (x - y)^2;  E sum_k sign M M^T = -Hessian of l_n in the model's output"),
    (lambda o, y: F.mse_loss(o, y) * y.mean(), "diag_ggn",
     "l_n: (x - y)^2;  diag(S) = v Hessian of l_n in the model's output; v: what the loss multiplies this l_n by"),
    (lambda o, y: F.mse_loss(o, y) * y.mean(), "kfac",
     "l_n: (x - y)^2;  E sum_k sign M M^T = v Hessian of l_n in the model's output; "
     "v: what the loss multiplies this l_n by"),
    (lambda o, y: F.mse_loss(o, y) + F.huber_loss(o, y, reduction="sum") / len(o), "grad",
     "l_n: (x - y)^2;  g = grad l_n"),
])
@pytest.mark.filterwarnings("ignore:the loss")
def test_what_an_end_of_the_loss_sends_off_is_said_of_that_end(loss, quantity, expected):
    """Its own operand may not be the model's output, and the loss may take a multiple of it."""
    found = headings(mlp(), [quantity], X, torch.randn(2, 3), loss)
    assert found["loss: mse_loss"] == expected


def test_factors_that_were_averaged_are_no_sums():
    alone, beside = (headings(mlp(), quantities, X, Y)["0: linear"] for quantities in (["kfra"], ["kfra", "kflr"]))
    assert "weight: B = G (kfra), A = sum U U^T" in alone
    assert headings(mlp(), ["kfra"], X, Y)["1: tanh"] == f"columns back: d S,  d = y'(x) = 1 - y^2;  {MATRICES}"
    assert MATRICES not in headings(mlp(), ["kflr"], X, Y)["1: tanh"]
    assert "weight: B = sum S S^T, B = G (kfra), A = sum U U^T" in beside


def test_a_diagonal_that_becomes_columns():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    found = headings(model, ["diag_h"], X, Y)
    assert f"columns back: S W;  {WIDENED};  weight: T" in found["2: linear"]
    assert WIDENED not in found["4: linear"]
    assert WIDENED not in headings(model, ["diag_ggn"], X, Y)["2: linear"]


def test_a_diagonal_that_becomes_columns_in_a_loop_says_so_where_the_loop_stands():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 8, 3, padding=1), nn.Sigmoid(),
                          nn.AvgPool2d(8), nn.Flatten(), nn.Linear(128, 4))
    code = hbp.compile(model, None, ["diag_h"], example_inputs=(torch.randn(2, 1, 32, 32), torch.tensor([0, 1]))).code
    heading, _, _ = code.partition("# ---- backward ----")[2].partition("conv2d_samples_turn(")
    assert WIDENED in " ".join(heading.split("# 2: conv2d")[1].replace("#", "").split())
    assert "jacobian_ J^T e_k as rows" in " ".join(code.split())


@pytest.mark.parametrize(("operation", "rule"), list(builtin()))
def test_every_rule_says_what_its_block_computes(operation, rule):
    constant = isinstance(rule, Rule) and rule.jac_t is NO_DERIVATIVE  # opens no block of the backward pass
    assert constant or rule.formula or getattr(rule, "derivative", None) is not None, operation
    if not callable(rule.formula):
        assert "\n" not in rule.formula
        assert rule.formula.count("residual:") <= 1
        assert BORN in rule.formula or "residual:" not in rule.formula


class Attended(nn.Module):
    """What is no layer, between layers: attention, pooling, a mean, parts and new shapes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(2, 3)

    def forward(self, x):
        h = self.first(x).view(-1, 6, 2, 4).transpose(1, 2)
        h = F.scaled_dot_product_attention(h, h, h)
        return self.last(F.max_pool2d(h, 2).amax(-1).mean(1)[:, :2])


@pytest.mark.parametrize("quantity", ["grad", "diag_ggn", "diag_h_split"])
def test_each_block_of_the_backward_pass_opens_with_its_formula(quantity):
    model, X = Attended(), torch.randn(2, 6, 4)
    code = hbp.compile(model, None, [quantity], example_inputs=(X, Y)).code
    backward = code.partition("# ---- backward ----")[2].partition("# ---- results ----")[0]
    opened = re.findall(r"^        # (?!\[)(\S.*)$", backward, re.MULTILINE)
    titles = [line for line in opened if not line.startswith("  ")]
    assert len(titles) > 6
    assert [line for line in titles if "    " not in line] == []


def test_a_scale_has_its_whole_block_and_no_input_factor():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    formula = headings(model, ["kflr"], X, Y)["1: layer_norm"]
    assert "B = sum T T^T" in formula
    assert "A =" not in formula


def test_shared_positions_are_summed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    formula = headings(model, ["kfac", "grad"], torch.randn(2, 1, 4, 4), Y)["0: conv2d"]
    assert "T = sum_p S[nkop] U[nip]" in formula
    assert "/ P" in formula


def test_what_is_made_of_another_parameters_cotangents_too_is_said_once():
    formula = headings(mlp(), ["grad", "diag_ggn", "kfac"], X, Y)["2: linear"]
    back, weight, bias = re.split(r"; +", formula)
    assert back == "columns back: S W"
    assert weight == "weight: T = S[nko] U[ni], sum_n T, sum_{nk} T^2, B = sum S S^T, A = sum U U^T"
    assert bias == "bias: likewise, T = S[nko], B = sum T T^T"


def test_a_heading_says_what_is_done_under_it_in_loops_and_outside():
    """Pooled columns end in a loop here, and all others at all positions."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(72, 5))
    images, quantities = torch.randn(2, 3, 14, 14), ["grad", "diag_h", "kflr", "batch_grad", "variance"]
    code = hbp.compile(model, None, quantities, example_inputs=(images, Y)).code
    assert "pooled_R_" in code
    in_loop = code.partition("class Program")[0]
    assert "# 0: conv2d    weight: T = sum_p S[nkop] U[nopi], sum_{nk} T^2;  bias: likewise" in in_loop
    assert "# 1: silu    columns back: d S,  d = y'(x) = s (1 + x (1 - s)),  s = sigmoid(x)\n" in in_loop
    assert "weight: T = sum_p S[nkop] U[nip]" in headings(model, quantities, images, Y)["0: conv2d"]
