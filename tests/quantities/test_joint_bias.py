"""Weight and bias as one Kronecker block: against inputs with a one behind them, position by position."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import ggn_block, kfac_emp, kflr
from tests.agreement import close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_empirical_factors import OF_FACTORS
from tests.selection import few, slow
from tests.ways import WAYS

EXACT = {"kflr": (kflr, False), "kflr_reduce": (kflr, True), "kfac_emp": (kfac_emp, False),
         "kfac_emp_reduce": (kfac_emp, True)}


def check(result, model, loss, X, y):
    """Every exact factor of linear layers and convolutions, by whether its bias is in the block."""
    for quantity, (brute_force, reduce) in EXACT.items():
        apart = brute_force(model, loss, [X], y, seed=0, reduce=reduce)
        joint = brute_force(model, loss, [X], y, seed=0, reduce=reduce, joint=True)
        biases = set(result.joint_biases.values())
        for name, factors in result[quantity].items():
            assert name not in biases
            if name not in apart:
                continue  # the scale of a norm, tried elsewhere
            A, B = joint[name] if name in result.joint_biases else apart[name]
            close(factors.B, B, f"B of {name}, {quantity}")
            assert (factors.A is None) == (A is None)
            if A is not None:
                close(factors.A, A, f"A of {name}, {quantity}")
        assert result[quantity].keys() == {name for name, p in model.named_parameters() if p.requires_grad} - biases


def is_met_where_its_bias_is(module):
    """Whether every position of the output meets the weight once: a transposed one is a convolution then."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return {*module.kernel_size, *module.stride} == {1} and set(module.padding) == {0}
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_of_single_pixels_is_a_convolution(groups):
    torch.manual_seed(0)
    transposed, plain = nn.ConvTranspose1d(2, 2, 1, groups=groups), nn.Conv1d(2, 2, 1, groups=groups)
    plain.weight.data = torch.cat([part.mT for part in transposed.weight.data.squeeze(2).chunk(groups)]).unsqueeze(2)
    plain.bias.data = transposed.bias.data
    rest = [nn.Tanh(), nn.Flatten(), nn.Linear(14, 2)]
    X, y = torch.randn(3, 2, 7, dtype=torch.float64), torch.tensor([0, 1, 1])
    found, expected = (hbp.compile(nn.Sequential(first, *rest).double(), quantities=["kflr"], joint_bias=True)(X, y)
                       for first in (transposed, plain))
    assert found.joint_biases == expected.joint_biases == {"0.weight": "0.bias", "3.weight": "3.bias"}
    for name, factors in expected.kflr.items():
        close(found.kflr[name].A, factors.A, f"A of {name}")
        close(found.kflr[name].B, factors.B, f"B of {name}")


@slow("random networks; fixed ones are beside it")
@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.sampled_from(OF_FACTORS))
def test_random_chains_in_every_way(setting, way):
    model, loss, X, y = setting
    torch.manual_seed(0)
    result = hbp.compile(model, loss, list(EXACT), joint_bias=True, limits=WAYS[way])(X, y)
    expected = {}
    for path, module in model.named_modules():
        ours = [name for name, p in module.named_parameters(path, recurse=False) if p.requires_grad]
        if is_met_where_its_bias_is(module) and len(ours) == 2:
            expected[ours[0]] = ours[1]
    assert result.joint_biases == expected
    check(result, model, loss, X, y)


class Mixed(nn.Module):
    """A layer that is used twice, one without a bias, one whose bias is frozen, a norm, a plain one."""

    def __init__(self):
        super().__init__()
        self.twice, self.bare, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.norm, self.plain, self.added = nn.LayerNorm(4), nn.Linear(4, 3), nn.Parameter(torch.randn(4))
        self.frozen.bias.requires_grad_(False)

    def forward(self, x):
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.plain(self.norm(torch.tanh(self.frozen(torch.tanh(self.bare(x) + self.added)))))


@slow("a second or more; shorter ones of its kind stay")
def test_what_does_not_meet_in_one_operation_stays_apart():
    torch.manual_seed(0)
    model, X, y = Mixed().double(), torch.randn(3, 2, 4, dtype=torch.float64), torch.randint(3, (3, 2))
    loss = nn.CrossEntropyLoss()

    def by_token(output, target):
        return loss(output.flatten(0, 1), target.flatten())

    names = ["kflr", "kfac", "kfac_reduce"]
    with pytest.raises(hbp.UnsupportedOpError, match="reduced factors of several uses"):
        hbp.compile(model, by_token, names, joint_bias=True)(X, y)
    compiled = hbp.compile(model, by_token, ["kflr", "kfac", "diag_ggn"], joint_bias=True)
    joint, apart = compiled(X, y), hbp.compile(model, by_token, ["kflr", "diag_ggn"])(X, y)
    assert joint.joint_biases == {"plain.weight": "plain.bias"}
    assert apart.joint_biases == {}
    assert "plain.bias" not in joint.kflr
    assert "plain.bias" not in joint.kfac
    assert joint.diag_ggn.keys() == apart.diag_ggn.keys()
    for name in joint.kflr.keys() - {"plain.weight"}:
        for found, expected in zip(joint.kflr[name], apart.kflr[name], strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                close(found, expected, name)
    told = compiled.explain().replace("\n", " ")
    assert "of its bias too, as its last input feature: plain.bias with plain.weight." in told
    assert "twice.weight, twice.bias by themselves: twice.weight is used 2 times." in told
    assert "bare.weight, frozen.weight by themselves: no bias that is trained" in told
    assert "added, norm.weight, norm.bias by themselves: it meets no input features" in told
    assert "plain.bias with plain.weight" in compiled.code


def test_one_sample_is_the_exact_block_of_both():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(1, 3, dtype=torch.float64), torch.tensor([2])
    result = hbp.compile(model, quantities=["kflr", "kfra", "kfac", "sqrt_ggn", "ekfac"], joint_bias=True)(X, y)
    for weight, bias in result.joint_biases.items():
        A, B = result.kflr[weight]
        parts = [result.sqrt_ggn[weight].flatten(0, 1), result.sqrt_ggn[bias].flatten(0, 1).unsqueeze(2)]
        V = torch.cat(parts, 2).flatten(1)  # [columns, out * (in + 1)]
        close(torch.kron(B, A), V.T @ V, weight)
        close(result.kfra[weight].B, B, "B of kfra")
        close(result.kfra[weight].A, A, "A of kfra")
        close(result.kfac[weight].A, A, "A of kfac")
        eigen = result.ekfac[weight]
        basis = torch.kron(eigen.B, eigen.A)
        sampled = torch.kron(result.kfac[weight].B, A)
        assert eigen.eigenvalues.shape == (len(B), len(A))
        close(basis @ eigen.eigenvalues.flatten().diag() @ basis.T, sampled, "ekfac of one sample")
    close(result.kflr["2.weight"].B, ggn_block(model, nn.CrossEntropyLoss(), [X], y, "2.bias"), "the bias's corner")


def test_options_verification_and_pickles():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    X, y = torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 2, 1])
    compiled = hbp.compile(model, quantities=["kflr", "kfac_emp_reduce"], joint_bias=True, verify="full",
                           backend="torchscript")
    result = compiled(X, y)
    table = compiled.verify(X, y)
    assert table.agrees
    assert {"0.weight", "3.weight"} == set(table.errors["kflr.A"]) == set(table.errors["kfac_emp_reduce.B"])
    assert result.kflr["0.weight"].A.shape == (2, 5, 5)
    again = pickle.loads(pickle.dumps(result))
    assert again.joint_biases == {"0.weight": "0.bias", "3.weight": "3.bias"}
    assert pickle.loads(pickle.dumps(compiled))(X, y).joint_biases == again.joint_biases
    with pytest.raises(hbp.CompileError, match="joint_bias must be True or False, not 'yes'"):
        hbp.compile(model, quantities=["kfac"], joint_bias="yes")


def test_factors_of_some_parameters_and_of_weights_stored_as_inputs_times_outputs():
    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.tanh(torch.addmm(self.bias, x, self.weight)))

    torch.manual_seed(0)
    model, X, y = Stored().double(), torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    quantities = {"kflr": "*", "kfac_emp": ["weight", "bias"], "kfac": ["weight", "bias", "head.weight"]}
    result = hbp.compile(model, quantities=quantities, joint_bias=True)(X, y)
    assert result.joint_biases == {"weight": "bias"}  # of head, kfac is asked for the weight alone
    ones = torch.cat([X, torch.ones(5, 1, dtype=torch.float64)], 1)
    close(result.kflr["weight"].A, ones.T @ ones / 5, "A of [in, out]")
    assert set(result.kfac) == {"weight", "head.weight"}
    assert set(result.kfac_emp) == {"weight"}
    assert set(result.kflr) == {"weight", "head.weight", "head.bias"}
    assert result.kflr["head.weight"].A.shape == (4, 4)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", ["nothing fits the cache", "inner products sample by sample"])
def test_sampled_factors_and_eigenvalues_are_those_of_their_own_columns(way):
    """The draws are the same in all quantities of a program, so that the columns say what the others must be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Sigmoid(), nn.Flatten(2), nn.Linear(4, 3), nn.Sigmoid(), nn.Flatten(),
                          nn.Linear(9, 3)).double()
    X, y = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    compiled = hbp.compile(model, quantities=["ekfac", "kfac", "kfac_reduce", "sqrt_ggn_mc"], joint_bias=True,
                           mc_samples=3, limits=WAYS[way])
    result = compiled(X, y)
    A_of = kflr(model, nn.CrossEntropyLoss(), [X], y, joint=True)
    reduced = kflr(model, nn.CrossEntropyLoss(), [X], y, joint=True, reduce=True)
    assert result.joint_biases.keys() == {"0.weight", "3.weight", "6.weight"}
    for weight, bias in result.joint_biases.items():
        close(result.kfac[weight].A, A_of[weight][0], f"A of {weight}")
        close(result.kfac_reduce[weight].A, reduced[weight][0], f"reduced A of {weight}")
        V = torch.cat([result.sqrt_ggn_mc[weight].flatten(3),
                       result.sqrt_ggn_mc[bias].unsqueeze(3)], 3)
        close(result.kfac_reduce[weight].B, torch.einsum("nko,nkz->oz", V[..., -1], V[..., -1]), "B of sums")
        eigen = result.ekfac[weight]
        turned = eigen.B.mT @ V @ eigen.A
        close(eigen.eigenvalues, turned.square().sum((0, 1)), f"eigenvalues of {weight}")
        for Q, factor in ((eigen.A, result.kfac[weight].A), (eigen.B, result.kfac[weight].B)):
            diagonal = Q.mT @ factor @ Q
            close(diagonal, diagonal.diagonal().diag(), "eigenvectors")


def test_weights_of_samples():
    """Ones are weighted as the inputs are: A is the average of weighted samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3)).double()
    X, y = torch.randn(4, 2, 3, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    w = torch.tensor([0.5, 0.0, 3.0, 1.5], dtype=torch.float64)
    quantities = ["kflr", "kflr_reduce", "kfac_emp", "ekfac", "kfra"]
    result = hbp.compile(model, quantities=quantities, joint_bias=True)(X, y, sample_weights=w)
    patches = F.unfold(X, 2).mT
    inputs = {"0.weight": torch.cat([patches, torch.ones_like(patches[:, :, :1])], 2)}
    hidden = model[:3](X).detach()[:, None]
    inputs["3.weight"] = torch.cat([hidden, torch.ones_like(hidden[:, :, :1])], 2)
    for name, u in inputs.items():
        A = torch.einsum("n,npi,npj->ij", w, u, u) / w.sum()
        for quantity in ("kflr", "kfac_emp", "kfra"):
            close(result[quantity][name].A, A, f"A of {name}, {quantity}")
        close(result.kflr_reduce[name].A, torch.einsum("n,ni,nj->ij", w, u.mean(1), u.mean(1)) / w.sum(), "of means")
        Q = result.ekfac[name].A
        close(Q.mT @ A @ Q, (Q.mT @ A @ Q).diagonal().diag(), "eigenvectors")
