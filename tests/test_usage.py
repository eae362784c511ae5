"""What people do with models and batches besides calling them: copies, threads, wrappers, odd batches, odd disks."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.compiler.trace import checks
from hbpcompiler.system import cache
from tests.agreement import close
from tests.selection import slow

X, Y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def agrees(result, model, x=X, y=Y, loss=nn.functional.cross_entropy):
    slopes = torch.autograd.grad(loss(model(x), y), [*model.parameters()])
    for name, slope in zip(dict(model.named_parameters()), slopes, strict=True):
        close(result.grad[name], slope, name)


# -- copies -----------------------------------------------------------------------------------------------------------


def test_pickle_and_deepcopy_make_it_again():
    model, loss = mlp(), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0], dtype=torch.float64))
    compiled = hbp.compile(model, loss, ["grad", "kflr"], mc_samples=3, curvature="ggn")
    result = compiled(X, Y)
    for again in (pickle.loads(pickle.dumps(compiled)), copy.deepcopy(compiled)):
        assert again.model is not model
        assert (again.quantities, again.options.mc_samples, again.options.curvature) == (("grad", "kflr"), 3, "ggn")
        with torch.no_grad():
            again.model[0].weight.add_(1)
        agrees(again(X, Y), again.model, loss=again.loss)
    assert copy.copy(compiled).model is model
    assert torch.equal(compiled(X, Y).grad["0.weight"], result.grad["0.weight"])


def test_results_can_be_sent_elsewhere():
    result = hbp.compile(mlp(), quantities=["grad", "kflr"])(X, Y)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert torch.equal(again.loss, result.loss)
        assert torch.equal(again.kflr["0.weight"].A, result.kflr["0.weight"].A)
        assert again.kflr["0.bias"].A is None
        again.to_parameters()


@slow("a process of its own")
def test_one_quantity_is_read_in_another_process(tmp_path):
    """Where the module of the program that made it is not known."""
    result = hbp.compile(mlp(), quantities=["kflr"])(X, Y)
    torch.save((result.kflr, result.kflr.like({"all": result.kflr["0.weight"]})), tmp_path / "kflr.pt")
    code = (f"import torch; kflr, like = torch.load({str(tmp_path / 'kflr.pt')!r}, weights_only=False)\n"
            "print(kflr.quantity, like['all'].A.shape == kflr['0.weight'].A.shape, *kflr)")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["kflr", "True", *result.kflr]


# -- threads ----------------------------------------------------------------------------------------------------------


def test_several_threads_compile_and_call():
    """Each its own model, all of them one model for the first time, and meanwhile a program that is ready."""
    shared, ready = mlp(), mlp()
    first, known, faults = hbp.compile(shared, quantities=["grad"]), hbp.compile(ready, quantities=["grad"]), []
    known(X, Y)

    def work(number):
        try:
            own, x, y = mlp(), torch.randn(number + 2, 3, dtype=torch.float64), torch.arange(number + 2) % 2
            agrees(hbp.compile(own, quantities=["grad"])(x, y), own, x, y)
            agrees(first(x, y), shared, x, y)
            for _ in range(20):
                agrees(known(x, y), ready, x, y)
        except Exception as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert "programs=1" in repr(first)


def test_a_batch_is_checked_again_where_another_thread_traces(monkeypatch):
    """Its trace has the parameters elsewhere for a moment."""
    own, seen = checks._checked, []

    def on_meta_at_first(model, batch):
        seen.append(batch)
        if len(seen) == 1:
            raise hbp.InputError("X is on device cpu, the model's parameters on meta")
        return own(model, batch)

    monkeypatch.setattr(checks, "_checked", on_meta_at_first)
    model, X, y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    result = hbp.compile(model, quantities=["grad"])(X, y)
    nn.functional.cross_entropy(model(X), y).backward()
    torch.testing.assert_close(result.grad["weight"], model.weight.grad)
    assert len(seen) == 2
    with pytest.raises(hbp.InputError, match="samples"):
        hbp.compile(model, quantities=["grad"])(X, y[:3])


def test_a_call_of_a_ready_program_does_not_wait_for_a_trace():
    model = mlp()
    compiled = hbp.compile(model, quantities=["grad"])
    compiled(X, Y)
    done = threading.Event()
    with hbp.guards.TRACING:
        thread = threading.Thread(target=lambda: (compiled(X, Y), done.set()))
        thread.start()
        assert done.wait(20)
    thread.join()


# -- wrappers ---------------------------------------------------------------------------------------------------------


def test_wrappers_are_taken_off(tmp_path):
    model = mlp()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = [nn.DataParallel(model), nn.parallel.DistributedDataParallel(model), torch.compile(model)]
    finally:
        torch.distributed.destroy_process_group()
    for wrapper in (*wrapped, nn.DataParallel(torch.compile(model))):
        compiled = hbp.compile(wrapper, quantities=["grad"])
        assert compiled.model is model
    result = compiled(X, Y)
    agrees(result, model)
    result.to_parameters()
    assert torch.equal(dict(wrapped[0].named_parameters())["module.0.weight"].grad, result.grad["0.weight"])
    wrapped[0].register_forward_hook(lambda m, i, o: o)
    with pytest.raises(hbp.CompileError, match="DataParallel has hooks"):
        hbp.compile(wrapped[0], quantities=["grad"])


# -- batches ----------------------------------------------------------------------------------------------------------


def test_empty_batches_are_zero_for_sums():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    names = ["grad", "batch_grad", "batch_l2", "diag_h", "kflr", "batch_dot", "sqrt_ggn"]
    X, Y = torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 2])
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), names)
    before = torch.get_rng_state()
    for _ in range(2):  # as the first batch of all, and later
        result = compiled(X[:0], Y[:0])
        assert result.loss.item() == 0
        assert result.output.shape == (0, 3)
        shapes = {"grad": (2, 1, 3, 3), "batch_grad": (0, 2, 1, 3, 3), "batch_l2": (0,), "diag_h": (2, 1, 3, 3),
                  "batch_dot": (0, 0), "sqrt_ggn": (0, 2, 2, 1, 3, 3)}
        for name, shape in shapes.items():
            assert result[name]["0.weight"].shape == shape
            assert not result[name]["0.weight"].any()
        assert result.kflr["0.weight"].B.shape == (2, 2)
        assert result.kflr["0.bias"].A is None
        assert compiled(X, Y).grad["0.weight"].any()
    assert torch.equal(torch.get_rng_state(), before)


def test_empty_batches_of_means_are_refused():
    for quantities in (["grad"], ["batch_grad"]):
        with pytest.raises(hbp.InputError, match=r"X of shape \[0, 3\] is an empty batch.*reduction='sum'") as told:
            hbp.compile(mlp(), quantities=quantities)(X[:0], Y[:0])
        assert "gives zeros" in str(told.value)
        assert "skip" not in str(told.value)  # a private step without its noise tells that nobody was drawn


ODD = {
    "sparse input": (lambda: (X.to_sparse(), Y), r"X is a sparse tensor, torch.sparse_coo; write x.to_dense\(\)"),
    "sparse rows": (lambda: (X.to_sparse_csr(), Y), "X is a sparse tensor, torch.sparse_csr"),
    "sparse target": (lambda: (X, torch.eye(4, 2).to_sparse()), "y is a sparse tensor"),
    "nested input": (lambda: (torch.nested.nested_tensor([X[0], X[1, :2]]), Y), "X is a nested tensor; pad it"),
    "jagged input": (lambda: (torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged), Y), "X is a nested"),
    "quantized input": (lambda: (torch.quantize_per_tensor(X.float(), 0.1, 0, torch.qint8), Y), "X is a quantized"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_tensors_that_are_not_dense(name):
    make, words = ODD[name]
    with pytest.raises(hbp.InputError, match=words) as caught:
        hbp.compile(mlp(), quantities=["grad"])(*make())
    assert isinstance(caught.value, TypeError)


def test_parameters_that_are_not_dense():
    model = mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    with pytest.raises(hbp.CompileError, match=r"(?s)dense tensors.*0\.weight \(a sparse tensor"):
        hbp.compile(model, quantities=["grad"])


def test_classes_in_place_of_instances():
    with pytest.raises(hbp.CompileError, match=r"the class CrossEntropyLoss itself.*EntropyLoss\(") as caught:
        hbp.compile(mlp(), nn.CrossEntropyLoss, quantities=["grad"])
    assert isinstance(caught.value, TypeError)
    with pytest.raises(hbp.CompileError, match="the class Linear itself"):
        hbp.compile(nn.Linear, quantities=["grad"])


# -- the cache folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def _new_temporary_folder():
    cache._temporary.cache_clear()
    yield
    cache._temporary.cache_clear()


@pytest.mark.usefixtures("_new_temporary_folder")
def test_a_cache_folder_that_cannot_be_made_or_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path / "file" / "below"))  # not even root can make this one
    model = mlp()
    compiled = hbp.compile(model, quantities=["grad"])
    with pytest.warns(hbp.CacheWarning, match="set HBP_CACHE_DIR") as warned:
        result = compiled(X, Y)
    agrees(result, model)
    assert len(warned) == 1
    assert compiled.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("_new_temporary_folder")
def test_a_full_disk_and_a_missing_home(monkeypatch, tmp_path):
    def full(path, text):
        if path.parent == tmp_path:
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(cache, "_write", full)
    with pytest.warns(hbp.CacheWarning, match="No space left"):
        path = cache.store(tmp_path / "a.py", "text")
    assert path.read_text() == "text"
    for name in ("HBP_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache.cache_folder() == path.parent


@slow("a process for one line")
def test_torch_s_compiler_is_not_imported_before_it_is_asked():
    """That takes a second, of a command that compiles nothing, too."""
    code = "import sys, torch; own = set(sys.modules); import hbpcompiler; print(*set(sys.modules) - own)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "hbpcompiler.compiler.trace.export" in found
    assert "torch._dynamo" not in found


@slow("a process for one line")
def test_the_temporary_folder_goes_with_the_process():
    code = ("from hbpcompiler.system import cache; import warnings; warnings.simplefilter('ignore');"
            "print(cache.temporary_folder('why'))")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found
    assert not os.path.exists(found)


def test_a_batch_in_one_argument():
    compiled = hbp.compile(nn.Linear(2, 3), quantities=["grad"])
    batch = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(hbp.InputError, match=r"1 argument was given, a tuple of 2: with a star before it, "
                                             r"compiled\(\*batch\)"):
        compiled(batch)
    with pytest.raises(hbp.InputError, match=r"1 argument was given, a dict of input, labels: the target goes apart, "
                                             r"compiled\(inputs, y\)"):
        compiled({"input": batch[0], "labels": batch[1]})
    for loader in ([batch, batch], DataLoader(TensorDataset(*batch))):
        with pytest.raises(hbp.InputError, match=r"of batches: give one batch at a time, compiled\(\*batch\), or "
                                                 r"hbp\.accumulate\(compiled, loader\)"):
            compiled(loader)
    with pytest.raises(hbp.InputError, match=r"a batch is \(X, y\): inputs and target, but no arguments were given"):
        compiled()


def test_no_target_for_a_loss_that_reads_one():
    compiled = hbp.compile(nn.Linear(2, 3), quantities=["jacobian"])
    with pytest.raises(hbp.InputError, match=r"must not read its target: pass loss=lambda output, y: output\.sum\(\)"):
        compiled(torch.ones(4, 2), None)
    without = hbp.compile(nn.Linear(2, 3), lambda output, y: output.sum(), ["jacobian"])
    assert without(torch.ones(4, 2), None).jacobian["weight"].shape == (4, 3, 3, 2)


def test_a_parameter_that_is_not_there_is_named():
    result = hbp.compile(nn.Linear(2, 3), quantities=["grad"])(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(KeyError, match=r"0\.weight: grad was computed for weight, bias"):
        result.grad["0.weight"]
    assert result.grad.get("0.weight") is None


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_parameters_of_two_dtypes(given):
    """Which of them the inputs have is for forward to say."""
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.last(torch.tanh(self.first(x.float())).double())

    torch.manual_seed(0)
    model, X, y = Mixed(), torch.randn(4, 3, dtype=given), torch.tensor([0, 1, 1, 0])
    found = hbp.compile(model, quantities=["grad"])(X, y)
    nn.CrossEntropyLoss()(model(X), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found.grad[name], parameter.grad)


def test_a_call_in_a_compiled_function_is_left_alone():
    """At the first batch, and later."""
    model = mlp()
    compiled = hbp.compile(model, quantities=["grad"])

    @torch.compile(backend="eager")
    def doubled(x, y):
        return 2 * compiled(x, y).loss, compiled(x, y)

    for x, y in ((X, Y), (2 * X, 1 - Y)):
        loss, result = doubled(x, y)
        close(loss, 2 * nn.functional.cross_entropy(model(x), y).detach(), "loss")
        agrees(result, model, x, y)


@slow("several models whole; warnings of each are looked at in its own test")
def test_no_warning_comes_from_within_torch():
    """Where warnings are errors, as in many projects' tests."""
    code = ("import torch, hbpcompiler as hbp\n"
            "model, X, y = torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])\n"
            "hbp.operator(model, torch.nn.CrossEntropyLoss(), (X, y)) @ torch.randn(15)\n"
            "hbp.optim.KFAC(model).step(X, y)\n"
            "def picked(output, y):\n"
            "    return torch.nn.functional.cross_entropy(output, y, reduction='none')[y > 0].mean()\n"
            "hbp.compile(model, picked, ['grad'])(X, y)\n")
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
