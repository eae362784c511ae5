"""The generated file works alone, treats names as data, and is the same bytes every time."""

import ast
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.quantities import WITHOUT_VECTORS
from tests.custom_op import SWIRL_RULE, Swirl
from tests.selection import few, slow

ALONE = '''
import sys

class Blocked:
    """Nothing of the library may be imported."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hbpcompiler", "rules", "codegen", "jinja2", "networkx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, ".")
import torch
import derivatives
from derivatives import Program

state, X, y, beside, expected = torch.load("batch.pt")

def check(result):
    """A Result, or the tuple that a scripted module returns, against the numbers of the compiling process."""
    assert len(result) == len(expected)
    compare(list(result), expected)

def compare(found, wanted):
    if isinstance(wanted, torch.Tensor):
        single = wanted.dtype == torch.float32  # whose last digit depends on where in memory a tensor begins
        torch.testing.assert_close(found, wanted, rtol=1e-5 if single else 1e-12, atol=1e-6 if single else 1e-14)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
        for key in wanted:
            compare(found[key], wanted[key])
    elif wanted is None:
        assert found is None
    else:
        for one, other in zip(found, wanted, strict=True):
            compare(one, other)

torch.manual_seed(0)
check(Program()(state, X, y, **beside))
scripted = torch.jit.script(Program())
torch.manual_seed(0)
check(scripted(state, X, y, **beside))
torch.jit.save(scripted, "program.pt")
torch.manual_seed(0)
check(torch.jit.load("program.pt")(state, X, y, **beside))
for samples in (1, len(X) - 1):
    Program()(state, X[:samples], y[:samples], **beside)
    scripted(state, X[:samples], y[:samples], **beside)
assert not [name for name in sys.modules if name.split(".")[0] == "hbpcompiler"]
print("alone:", derivatives.__file__)
'''


def plain(value):
    """Dicts, lists and tensors only."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def run_alone(folder, compiled, X, y):
    """Run the saved file in a Python that sees only torch; return what it printed."""
    compiled.save(folder / "derivatives.py")
    torch.manual_seed(0)
    beside = {"max_norm": 0.5} if "clipped_grad" in compiled.quantities else {}
    expected = [plain(value) for value in compiled.program(compiled.state, X, y, **beside)]
    torch.save((dict(compiled.state), X, y, beside, expected), folder / "batch.pt")
    (folder / "alone.py").write_text(ALONE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HBP"))}
    done = subprocess.run([sys.executable, "-I", "-W", "ignore", "alone.py"], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(8, 4), nn.Softplus(), nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=slow("the same without dropout"))])
def test_saved_file_works_alone(tmp_path, training):
    torch.manual_seed(0)
    model = cnn().double().train(training)
    model[1].eval()
    X, y = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.randint(3, (5,))
    compiled = hbp.compile(model, quantities=WITHOUT_VECTORS, example_inputs=(X, y))
    assert str(tmp_path) in run_alone(tmp_path, compiled, X, y)


@slow("a process for one more file")
def test_saved_file_of_a_regression_in_single_precision(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2))
    X, y = torch.randn(5, 3), torch.randn(5, 2)
    compiled = hbp.compile(model, nn.MSELoss(reduction="sum"), quantities=WITHOUT_VECTORS, example_inputs=(X, y))
    run_alone(tmp_path, compiled, X, y)


def test_the_file_imports_torch_and_typing_only():
    batch = torch.zeros(2, 3), torch.tensor([0, 1])
    compiled = hbp.compile(nn.Linear(3, 2), quantities=WITHOUT_VECTORS, example_inputs=batch)
    tree = ast.parse(compiled.code)
    imported = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert imported <= {"torch", "typing"}


# -- names are data --------------------------------------------------------------------------------------------------

HOSTILE = [
    '"); import os #', "'+'", '"""', "a\nimport os\nb", "a\rb", "\\", '\\"', "\\'", "\\'\"", "{{ 7 * 7 }}", "{% raw %}",
    "# comment", "ünïcode ☃", "日本", "import", "class", "None", "True", "torch", "F", "state", "self", "loss",
    "output", "x", "y", "N", "Result", "Program", "forward", "__class__", "grad", "0", " ", "a b", "\t", "\x00",
    "\u2028", "\u202e", "a'b", "[red]", "f{x}", "%s", "e" * 300,
]  # fmt: skip


def build(names):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3))
    for name in names:
        if not hasattr(model, name):
            model.add_module(name, nn.Linear(3, 3))
            model.add_module(f"{name} act", nn.Tanh())
    return model.double()


@slow("a process of its own")
def test_hostile_module_names_are_data(tmp_path):
    model = build(HOSTILE)
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(3, (4,))
    compiled = hbp.compile(model, quantities=["grad", "kflr"])
    result = compiled(X, y)
    assert "[red]" in compiled.explain()
    loss = nn.functional.cross_entropy(model(X), y)
    for (name, parameter), slope in zip(model.named_parameters(), torch.autograd.grad(loss, model.parameters()),
                                        strict=True):
        torch.testing.assert_close(result.grad[name], slope)
        assert result.kflr[name].B.shape == (3, 3)
        assert parameter.grad is None


@slow("a process for one more file; what such names could do is tested below without one")
def test_a_file_with_hostile_names_works_alone(tmp_path):
    model = build([name for name in HOSTILE[:24] if name != "a\rb"])  # torch.jit.load cannot read \r back
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(3, (4,))
    compiled = hbp.compile(model, quantities=["grad", "diag_h", "kflr"], example_inputs=(X, y))
    run_alone(tmp_path, compiled, X, y)


@few(2, "further cases of one kind")
@pytest.mark.parametrize(
    "name",
    [
        'x\n\nopen({flag!r}, "w")\n',
        'x\n        open({flag!r}, "w")\n',
        '"); open({flag!r}, "w"); ("',
        '"]; open({flag!r}, "w")#',
        '"""\nopen({flag!r}, "w")\n"""',
        '""" + str(open({flag!r}, "w")) + """',
        "{{{{ open({flag!r}, 'w') }}}}",
    ],
)
def test_code_in_a_name_is_never_run(tmp_path, name):
    flag = tmp_path / "flag"
    name = name.format(flag=str(flag)).replace(".", "_")
    inner = nn.Sequential()
    inner.add_module(name, nn.Linear(3, 3))
    model = type(name, (nn.Sequential,), {})(nn.Linear(3, 3), inner)
    X, y = torch.randn(4, 3), torch.randint(3, (4,))
    compiled = hbp.compile(model, quantities=["grad", "diag_h"], example_inputs=(X, y))
    compiled(X, y)
    compiled.explain()
    assert not flag.exists()
    names = {node.id for node in ast.walk(ast.parse(compiled.code)) if isinstance(node, ast.Name)}
    assert "open" not in names


def test_parameters_with_hostile_names():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter('w"); import os #', nn.Parameter(torch.randn(3, 3)))
            self.register_buffer("b'\n", torch.randn(3))

        def forward(self, x):
            return nn.functional.linear(x, getattr(self, 'w"); import os #'), getattr(self, "b'\n"))

    torch.manual_seed(0)
    model, X, y = nn.Sequential(Scaled(), nn.Tanh(), nn.Linear(3, 3)), torch.randn(4, 3), torch.randint(3, (4,))
    result = hbp.compile(model, quantities=["grad", "variance"])(X, y)
    loss = nn.functional.cross_entropy(model(X), y)
    for (name, _), slope in zip(model.named_parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
        torch.testing.assert_close(result.grad[name], slope)


# -- the same bytes --------------------------------------------------------------------------------------------------

REGENERATE = '''
import sys, torch
import hbpcompiler as hbp
from torch import nn
model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid(),
                      nn.Linear(4, 3))
X, y = torch.randn(4, 1, 6, 6), torch.randint(3, (4,))
compiled = hbp.compile(model, quantities=set(hbp.QUANTITIES), example_inputs=(X, y))
sys.stdout.buffer.write(compiled.code.encode())
'''


@slow("two processes; that numbers and order change nothing is tested in one")
def test_two_processes_write_the_same_bytes(tmp_path):
    texts = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "HBP_CACHE_DIR": str(tmp_path / seed)}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", REGENERATE], env=environment, cwd=tmp_path,
                              capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr.decode()
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert texts[0].startswith(b'"""')


def test_the_text_does_not_depend_on_numbers_order_or_batch_size():
    torch.manual_seed(0)
    texts = set()
    for samples, quantities in ((2, ["kflr", "diag_h", "grad"]), (9, ["grad", "kflr", "diag_h", "grad"])):
        X, y = torch.randn(samples, 3), torch.randint(3, (samples,))
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        texts.add(hbp.compile(model, quantities=quantities, example_inputs=(X, y)).code)
    assert len(texts) == 1


def test_the_head_says_what_the_file_needs_and_how_to_call_it(tmp_path):
    model, X, y = nn.Sequential(nn.Linear(3, 2), Swirl()), torch.randn(4, 3), torch.ones(4)
    path = tmp_path / "swirl.py"
    path.write_text(SWIRL_RULE.replace(", forward=lambda op: op.self + op.self.sin().square()", ""))
    with_rule = hbp.compile(model, quantities=["clipped_grad"], rules=[path], example_inputs=(X, y.long()))
    head = " ".join(with_rule.code.partition('"""\n')[0].split())
    assert "it needs torch and, imported before it is called, what registers hbptests::swirl." in head
    assert "Call it as Program()(state, x, y, max_norm, sample_weights=None): state holds" in head
    derived = hbp.compile(model, quantities=["grad"], example_inputs=(X, y.long()))  # torch differentiates it
    head = " ".join(derived.code.partition('"""\n')[0].split())
    assert "it needs torch and, imported before it is called, what registers hbptests::swirl." in head
    without = hbp.compile(model[0], quantities=["grad"], example_inputs=(X, y.long()))
    assert "it needs only torch.\nCall it as Program()(state, x, y, sample_weights=None): state holds" in without.code


def test_the_file_draws_from_the_global_generator():
    """After the same seed it draws what the call draws."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    X, y = torch.randn(8, 4), torch.randint(3, (8,))
    compiled = hbp.compile(model, quantities=["diag_ggn_mc"], example_inputs=(X, y))
    torch.manual_seed(3)
    called = compiled(X, y).diag_ggn_mc["0.weight"]
    torch.manual_seed(3)
    alone = compiled.program(dict(compiled.state), X, y).diag_ggn_mc["0.weight"]
    given = compiled(X, y, generator=torch.Generator().manual_seed(3)).diag_ggn_mc["0.weight"]
    assert torch.equal(called, alone)
    assert not torch.equal(called, given)
