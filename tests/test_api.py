"""What DESIGN promises of `compile` and `Compiled`: laziness, live parameters, modes, dtypes, backends, frozen ones."""

import copy

import networkx as nx
import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import agree, close
from tests.selection import few, slow


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(),
                         nn.Linear(5, 3)).double()


def batch(samples=4, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(samples, 1, 6, 6, dtype=dtype), torch.randint(0, 3, (samples,))


def test_lazy_and_eager_tracing():
    X, y = batch()
    lazy = hbp.compile(network(), quantities=["grad"])
    with pytest.raises(hbp.CompileError, match="first batch"):
        _ = lazy.code
    lazy(X, y)
    eager = hbp.compile(network(), quantities=["grad"], example_inputs=(X, y))
    assert eager.code == lazy.code


def test_parameters_are_read_live():
    model, (X, y) = network(), batch()
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model[4].weight = nn.Parameter(torch.randn(5, 12, dtype=torch.float64))
    found = compiled(X, y).diag_h
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(found[name], value, name)


def test_train_and_eval_have_their_own_programs():
    X, y = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(0.5)).double()
    compiled = hbp.compile(model, quantities=["grad"])
    model.eval()
    assert torch.equal(compiled(X, y).output, model(X))
    model.train()
    outputs = [compiled(X, y).output for _ in range(2)]
    assert not torch.equal(*outputs)
    assert "programs=2" in repr(compiled)


@pytest.mark.parametrize("backend", ["torchscript", pytest.param("inductor", marks=slow("compiles C++"))])
def test_backends_agree(backend):
    model, (X, y) = network(), batch()
    names = ["grad", "variance", "diag_h", "kflr"]
    plain = hbp.compile(model, quantities=names)(X, y)
    other = hbp.compile(model, quantities=names, backend=backend)(X, y)
    for name in names[:3]:
        for key, value in plain[name].items():
            close(other[name][key], value, f"{name} of {key}")
    close(other.kflr["0.weight"].A, plain.kflr["0.weight"].A, "A")
    assert other.kflr["0.bias"].A is None


@slow("inductor")
def test_inductor_is_handed_the_program():
    """What it makes of it is tested above; here its code runs as it is."""
    model, (X, y) = network(), batch()
    plain = hbp.compile(model, quantities=["grad"])(X, y)
    with torch.compiler.set_stance("force_eager"):
        other = hbp.compile(model, quantities=["grad"], backend="inductor")
        found = other(X, y).grad
    assert isinstance(other.program, torch._dynamo.OptimizedModule)
    for key, value in plain.grad.items():
        assert torch.equal(found[key], value)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, (X, y) = network(), batch()
    names = ["grad", "diag_ggn", "diag_h", "kflr"]
    exact = hbp.compile(model, quantities=names)(X, y)
    low = hbp.compile(copy.deepcopy(model).to(dtype), quantities=names)(X.to(dtype), y)
    for name in names[:3]:
        for key, value in exact[name].items():
            assert low[name][key].dtype == dtype
            error = (low[name][key].double() - value).norm() / value.norm()
            assert error < 0.1, f"{name} of {key}: {error:.3f}"


def test_frozen_parameters_cost_nothing():
    model, (X, y) = network(), batch()
    for parameter in list(model.parameters())[:4]:
        parameter.requires_grad_(False)
    compiled = hbp.compile(model, quantities=["diag_h", "grad"])
    result = compiled(X, y)
    assert list(result.diag_h) == ["6.weight", "6.bias"]
    backward = compiled.code.split("# ---- backward ----")[1]
    for absent in ("conv2d_0", "sigmoid_1", "max_pool2d_2", "linear_4"):
        assert f"g_{absent}" not in backward
        assert f"S_{absent}" not in backward
    assert "indices" not in compiled.code.partition("class Program")[2]
    model[0].weight.requires_grad_(True)
    assert "0.weight" in compiled(X, y).grad


def test_to_parameters():
    model, (X, y) = network(), batch()
    result = hbp.compile(model, quantities=["grad", "diag_h", "kflr"])(X, y)
    result.to_parameters()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, result.grad[name])
        assert parameter.diag_h is result["diag_h"][name]
        assert parameter.kflr.B is result.kflr[name].B
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_a_result_is_a_mapping_of_its_quantities():
    result = hbp.compile(network(), quantities=["grad", "diag_h"])(*batch())
    assert dict(result) == {"grad": result.grad, "diag_h": result.diag_h}


def test_graph_and_explain():
    model, (X, y) = network(), batch()
    compiled = hbp.compile(model, quantities=["diag_h", "kflr"], example_inputs=(X, y))
    graph = compiled.graph
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_directed_acyclic_graph(graph)
    assert {data["key"] for _, data in graph.nodes(data=True) if data["trainable"]} == dict(
        model.named_parameters()).keys()
    text = compiled.explain(batch_size=32)
    kept = ("What the forward pass keeps", "max_pool2d_2_indices", "[N, 3, 4, 4]", "1.54k")
    for word in (*kept, "0.weight", "residual", "ggn", "symmetric product", "N=32", "diagonal"):
        assert word in text


def test_missing_quantity_is_named():
    X, y = batch()
    result = hbp.compile(network(), quantities=["grad"])(X, y)
    with pytest.raises(AttributeError, match="diag_h"):
        _ = result.diag_h
    with pytest.raises(KeyError, match="diag_h"):
        result["diag_h"]
    assert "grad" in result
    assert list(result) == ["grad"]


OWN_LOSSES = {
    "half squared error": lambda output, target: 0.5 * ((output - target) ** 2).sum(1).mean(),
    "summed": lambda output, target: ((output - target) ** 4).sum(),
    "cross entropy by hand": lambda output, target: -(output.log_softmax(1) * target).sum(1).mean(),
    "logistic": lambda output, target: (1 + (-output * target).exp()).log().mean(),
    "scaled output": lambda output, target: nn.functional.mse_loss(3 * output, target),
    "reduced by hand": lambda output, target: nn.functional.cross_entropy(output, target, reduction="none").mean(),
    "largest squared": lambda output, target: (output.amax(1) ** 2).mean(),
    "divided by the batch": lambda output, target: ((output - target) ** 2).sum() / output.shape[0],
    "not convex": lambda output, target: (1 - (-(output - target) ** 2).exp()).mean(),
}


@few(3, "further cases of one kind")
@pytest.mark.parametrize("name", list(OWN_LOSSES))
def test_a_loss_of_ones_own(name):
    class Own(nn.Module):
        reduction = "sum" if name == "summed" else "mean"

        def forward(self, output, target):
            return OWN_LOSSES[name](output, target)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    names = ["grad", "batch_grad", "variance", "diag_ggn", "diag_h"]
    result = hbp.compile(model, Own(), [*names, "kfra", "kflr", "diag_ggn_mc"], mc_samples=2)(X, y)
    agree(result, model, Own(), [X], y, names)
    assert result.kflr["0.weight"].A.shape == (3, 3)


def test_a_loss_of_ones_own_as_a_function():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    loss = OWN_LOSSES["half squared error"]
    result = hbp.compile(model, loss, ["diag_h"])(X, y)
    for key, value in reference(model, loss, [X], y, "diag_h").items():
        close(result.diag_h[key], value, key)


def kinds_of(base):
    """All classes below it that have a public name and are the library's."""
    for kind in base.__subclasses__():
        yield from kinds_of(kind)
        if kind.__module__.startswith("hbpcompiler") and not kind.__name__.startswith("_"):
            yield kind


def test_every_class_that_a_traceback_shows_is_an_attribute():
    found = {*kinds_of(hbp.HbpError), *(kind for kind in kinds_of(Warning) if kind.__module__ == hbp.errors.__name__)}
    assert {hbp.OptionTypeError, hbp.ScipyMissingError, hbp.CacheWarning} <= found
    assert [kind for kind in found if getattr(hbp, kind.__name__, None) is not kind] == []
    assert {kind.__name__ for kind in found} <= {*hbp.__all__}


def test_what_completion_offers():
    """Names for users, and no inner modules, which stay importable."""
    assert {*hbp.__all__} <= {*dir(hbp)}
    assert "compiler" not in dir(hbp)
    assert hbp.compiler is not None
    assert {name for name in dir(hbp) if not name.startswith("__")} == {*hbp.__all__} - {"__version__"}
