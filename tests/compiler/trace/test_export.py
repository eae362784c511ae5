"""From a module to a graph, and the checks of a batch before that."""

import pytest
import torch
from torch import nn
from torch.export import exported_program

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.checks import check_batch, check_runs, reason
from hbpcompiler.compiler.trace.export import export, quoted_names
from hbpcompiler.compiler.trace.fx_graph.reader import constants, loss_tensors, read
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import BatchDoesNotFitError, InputError, InputTypeError

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
X, Y = torch.zeros(5, 3), torch.tensor([0, 1, 1, 0, 1])
LOSS = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))


@pytest.fixture(scope="module")
def exported():
    batch = batch_of((X, Y))
    program, structure = export(MODEL, LOSS, batch)
    return program, structure, read(program, MODEL, batch.layout)


def test_the_graph_holds_model_and_loss(exported):
    _, structure, graph = exported
    assert [made.short for made in graph.operations] == ["linear", "relu", "linear", "cross_entropy_loss"]
    assert [made.source.module for made in graph.operations] == ["0", "1", "2", ""]
    assert graph.operations[-1].source.in_loss
    assert structure.is_one_tensor
    assert graph.outputs[0].shape == (N, 2)
    assert graph.loss.shape == ()


def test_state_has_the_names_of_the_model_and_the_losss_own(exported):
    program, _, graph = exported
    assert [value.key for value in graph.state if value.trainable] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [value.key for value in graph.state if not value.trainable] == ["loss:weight"]
    assert torch.equal(loss_tensors(LOSS)["loss:weight"], LOSS.weight)
    assert constants(program) == {}


def test_exporting_changes_nothing_of_the_users():
    before = [dict(vars(module)) for module in MODEL.modules()]
    export(MODEL, LOSS, batch_of((X, Y)))
    assert [dict(vars(module)) for module in MODEL.modules()] == before


def test_names_are_quoted_meanwhile():
    with quoted_names():
        assert torch.fx.graph._format_target("self", "a.0") == "getattr(self.a, '0')"


def test_names_that_torch_would_have_to_quote_are_traced_and_taken_apart():
    """A module and parameters whose names hold quotes, line breaks and backslashes."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module('a <b>&"\n\u00e9', nn.Linear(3, 2))
            self.scales = nn.ParameterDict({"g'</script>\\n": torch.ones(2), 'batch_l2"': torch.ones(())})

        def forward(self, x):
            h = getattr(self, 'a <b>&"\n\u00e9')(x)
            return h * self.scales["g'</script>\\n"].exp() * self.scales['batch_l2"']

    torch.manual_seed(0)
    model, X, y = Named().double(), torch.randn(4, 3).double(), torch.randn(4, 2).double()
    result = hbp.compile(model, nn.MSELoss(), ["grad", "diag_ggn"])(X, y)
    expected = torch.autograd.grad(nn.functional.mse_loss(model(X), y), list(model.parameters()))
    assert result.grad.keys() == dict(model.named_parameters()).keys()
    for (name, _), slope in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(result.grad[name], slope)


def test_a_batch_that_fits():
    batch = check_batch(MODEL, (X, Y))
    check_runs(MODEL, LOSS, batch)
    assert batch.samples == 5


@pytest.mark.parametrize(("arguments", "kind", "message"), [
    ((torch.zeros(0, 3), Y), InputError, "X has 0 samples, y has 5"),
    ((torch.tensor(1.0), Y), InputError, "X has no axes"),
    ((X.double(), Y), InputTypeError, "X has dtype torch.float64"),
    ((X, Y[:4]), InputError, "X has 5 samples, y has 4"),
    ((X.to("meta"), Y), InputError, "X is on device meta"),
])
def test_what_is_no_batch_of_this_model(arguments, kind, message):
    with pytest.raises(kind, match=message):
        check_batch(MODEL, arguments)


def test_torchs_own_words_where_the_batch_does_not_fit():
    with pytest.raises(BatchDoesNotFitError, match=r"X does not go through the model. X is \[5, 4\] torch.float32"):
        check_runs(MODEL, LOSS, batch_of((torch.zeros(5, 4), Y)))
    with pytest.raises(BatchDoesNotFitError, match=r"y does not fit the loss. .*the model's output \[N, 2\]"):
        check_runs(MODEL, LOSS, batch_of((X, torch.zeros(5, 7))))
    assert reason(ValueError("one\ntwo")) == "ValueError: one"


def test_exports_of_tests_are_torchs_own(monkeypatch):
    """`tests/kept_overrides.py` writes what torch.export writes itself; afterwards nothing of it is left."""
    keeping = exported_program._override_composite_implicit_decomp
    operations = exported_program._collect_all_valid_cia_ops()
    before = {operation: dict(operation.py_kernels) for operation in operations}
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    program = torch.export.export(model, (torch.zeros(5, 3, 4),))

    def text():
        return program.run_decompositions({}).graph_module.code

    texts = [text(), text()]  # the second writes again what was kept
    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", keeping.override)
    assert texts == [text()] * 2
    assert "layer_norm.default" in texts[0], "a composite that torch would take apart"
    assert before == {operation: dict(operation.py_kernels) for operation in operations}
    assert keeping.kept
