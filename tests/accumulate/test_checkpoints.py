"""Interrupted runs go on where they were, bit by bit; files that are not theirs are refused and left alone."""

import errno
import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.accumulate import checkpoint as files
from hbpcompiler.accumulate.adding import Adding
from hbpcompiler.accumulate.sums import Sums
from tests.selection import cases, slow

NAMES = ["grad", "variance", "diag_ggn_mc", "kfac"]
LENGTHS = [3, 2, 4, 1, 3]


def network(seed=0, hidden=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def batches():
    torch.manual_seed(1)
    return [(torch.randn(length, 3), torch.randint(0, 3, (length,))) for length in LENGTHS]


COMPILED = hbp.compile(network(), None, NAMES, example_inputs=batches()[0])


def run(loader=None, compiled=COMPILED, **options):
    return hbp.accumulate(compiled, batches() if loader is None else loader, progress=False, **options)


def bits(total):
    found = [total.loss]
    for quantity in total:
        for value in total[quantity].values():
            found += value if isinstance(value, tuple) else [value]
    return [tensor for tensor in found if tensor is not None]


def assert_same(total, other):
    for own, theirs in zip(bits(total), bits(other), strict=True):
        assert torch.equal(own, theirs)


class Interrupted:
    """A loader that is left after some batches."""

    def __init__(self, after, error):
        self.after, self.error = after, error

    def __iter__(self):
        yield from batches()[: self.after]
        raise self.error

    def __len__(self):
        return len(LENGTHS)


@pytest.mark.parametrize("after", range(1, len(LENGTHS)))
def test_after_ctrl_c_a_run_goes_on_to_the_same_bits(tmp_path, after):
    path = tmp_path / "total.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(after, KeyboardInterrupt()), checkpoint=path)
    resumed = run(checkpoint=path)
    assert_same(resumed, run())
    assert_same(run(checkpoint=path), resumed)  # nothing is left to do
    assert_same(hbp.Total.load(path, COMPILED.model), resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["total.pt"]


@pytest.fixture
def _heard():
    """Ctrl-C is heard as in a terminal, also where what started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
@pytest.mark.parametrize("addition", [1, 8])
def test_ctrl_c_while_a_batch_is_added_counts_behind_it(tmp_path, monkeypatch, addition):
    """Half a batch in a checkpoint would be added again."""
    path, add, number = tmp_path / "total.pt", Sums._add, itertools.count()

    def interrupted(*given):
        add(*given)
        if next(number) == addition:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Sums, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path)
    monkeypatch.undo()
    assert next(number) > addition + 1, "the rest of the batch is in"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(run(checkpoint=path), run())


@slow("a second or more; shorter ones of its kind stay")
@pytest.mark.usefixtures("_heard")
def test_ctrl_c_while_a_program_adds_counts_behind_the_batch(tmp_path, monkeypatch):
    """And a run goes on to the same bits with a program that has to be proven first, of one sample too."""
    path, fitting = tmp_path / "total.pt", Adding.fitting

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        return fitting(*given)

    def compiled():
        return hbp.compile(network(), None, NAMES, limits=hbp.Limits(grown_bytes=0))

    whole = run(compiled=compiled())
    monkeypatch.setattr(Adding, "fitting", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(compiled=compiled(), checkpoint=path)
    monkeypatch.setattr(Adding, "fitting", fitting)
    assert files.read(path)[1].batches == 2
    for more in (3, len(LENGTHS)):
        total = run(compiled=compiled(), checkpoint=path, max_batches=more)
    assert_same(total, whole)


def test_an_error_in_a_loader_loses_what_is_behind_the_last_checkpoint_only(tmp_path):
    with pytest.raises(RuntimeError, match="broken"):
        run(Interrupted(3, RuntimeError("broken")), checkpoint=tmp_path / "total.pt", checkpoint_every=0)
    _, header = files.read(tmp_path / "total.pt")
    assert (header.batches, header.complete) == (3, False)
    assert_same(run(checkpoint=tmp_path / "total.pt"), run())


def test_a_loader_with_indices_reads_nothing_twice_but_the_last_batch(tmp_path):
    read = []

    class Counted(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            read.append(index)
            return torch.full((3,), float(index)), index % 3

    loader = torch.utils.data.DataLoader(Counted(), batch_size=2)
    run(loader, checkpoint=tmp_path / "total.pt", max_batches=3)
    read.clear()
    total = run(loader, checkpoint=tmp_path / "total.pt")
    assert read == [4, 5, 6, 7, 8, 9]
    assert_same(total, run(loader))


def test_a_loader_that_does_not_repeat_itself_is_noticed(tmp_path):
    path = tmp_path / "total.pt"
    run(checkpoint=path, max_batches=2)
    with pytest.raises(hbp.InputError, match=r"batch 1 is not the one that .* has in"):
        run(list(reversed(batches())), checkpoint=path)
    with pytest.raises(hbp.InputError, match="has 2 batches in, but the loader gives no more than 1"):
        run(batches()[:1], checkpoint=path)
    with pytest.raises(hbp.InputError, match="more than max_batches=1"):
        run(checkpoint=path, max_batches=1)
    assert_same(run(checkpoint=path), run())


@pytest.mark.parametrize("stop", [1, 3])
def test_a_loader_that_fills_the_same_memory_again_is_gone_on_with(tmp_path, stop):
    """At Ctrl-C it has the next batch in where the last one was."""
    path = tmp_path / "total.pt"

    def loader(stop=None):
        X, y = torch.empty(2, 3), torch.empty(2, dtype=torch.long)
        for number in range(5):
            X.fill_(number)
            y.fill_(number % 3)
            if number == stop:
                raise KeyboardInterrupt
            yield X, y

    with pytest.raises(KeyboardInterrupt):
        run(loader(stop), checkpoint=path)
    assert files.read(path)[1].batches == stop
    assert_same(run(loader(), checkpoint=path), run(loader()))


def test_a_loader_that_changes_the_model_is_noticed(tmp_path):
    model, path = network(), tmp_path / "total.pt"
    compiled = hbp.compile(model, None, NAMES)

    def loader(change):
        for number, batch in enumerate(batches()):
            if number == 2:
                with torch.no_grad():
                    change(model[0].weight)
            yield batch

    assert_same(run(loader(lambda weight: weight.copy_(weight.clone())), compiled), run())
    before = model[0].weight.detach().clone()
    with pytest.raises(hbp.InputError, match="batch 2 of the loader: the model's parameters or buffers are no longer"):
        run(loader(lambda weight: weight.add_(1.0)), compiled, checkpoint=path, checkpoint_every=0)
    with torch.no_grad():
        model[0].weight.copy_(before)
    assert files.read(path)[1].batches == 2
    assert_same(run(compiled=compiled, checkpoint=path), run())


def test_a_loader_that_leaves_the_model_in_another_mode_is_noticed(tmp_path):
    model, path = network().eval(), tmp_path / "total.pt"
    compiled = hbp.compile(model, None, NAMES)

    def loader(part, back):
        for number, batch in enumerate(batches()):
            if number == 2:
                part.train()
                if back:
                    part.eval()
            yield batch

    assert_same(run(loader(model, back=True), compiled), run(compiled=compiled))
    for part, modes in ((model, "train"), (model[0], "eval but for 0")):
        with pytest.raises(hbp.InputError, match=f"batch 2 of the loader: the model's modes are now {modes}, and were "
                                                 "eval for the batches before"):
            run(loader(part, back=False), compiled)
        model.eval()
    run(compiled=compiled, checkpoint=path, max_batches=2)
    model[0].train()
    with pytest.raises(hbp.InputError, match="modes: eval but for 0 here, eval there"):
        run(compiled=compiled, checkpoint=path)
    model.eval()
    assert_same(run(compiled=compiled, checkpoint=path), run(compiled=compiled))


def test_every_difference_to_the_run_of_a_file_is_named(tmp_path):
    path = tmp_path / "total.pt"
    run(checkpoint=path, max_batches=2)
    before = path.read_bytes()
    other = hbp.compile(network(hidden=5), nn.CrossEntropyLoss(reduction="sum"), [*NAMES, "diag_ggn"], mc_samples=2)
    with pytest.raises(hbp.InputError) as raised:
        run(compiled=other, checkpoint=path, seed=3, dtype=torch.float32)
    for part in ("'0.weight' is [5, 3] torch.float32 here, [4, 3] torch.float32 there", "quantities: ",
                 "reduction='sum') here, ", "'mc_samples' is 2 here, 1 there",
                 "dtype: torch.float32 here, torch.float64 there", "seed: 3 here, 0 there", "remove the file"):
        assert part in str(raised.value)
    with pytest.raises(hbp.InputError, match="numbers are others"):
        run(compiled=hbp.compile(network(seed=7), None, NAMES), checkpoint=path)
    with pytest.raises(hbp.InputError, match="written for another model"):
        hbp.Total.load(path, network(hidden=5))
    with pytest.warns(hbp.TotalWarning, match="at other numbers of the parameters or buffers"):
        assert hbp.Total.load(path, network(seed=7)).samples == 5
    assert path.read_bytes() == before
    held, header = files.read(path)
    others = {"library": "0.0", "torch": "1.13", "world": 4, "rank": 2, "compensated": True, "sample_weights": True,
              "patterns": "grad: 0.*"}
    files.write(path, held, replace(header, **others, options={**header.options, "mc_samples": "7"}))
    with pytest.raises(hbp.InputError) as raised:
        run(checkpoint=path)
    for name, value in others.items():
        name = {"world": "number of ranks"}.get(name, name)
        assert re.search(rf"{name}: .* here, {re.escape(str(value))} there", str(raised.value))
    assert "options: 'mc_samples' is 1 here, 7 there" in str(raised.value)


@pytest.mark.parametrize("content", ["", "text", "half", "foreign", "bare", "flipped"])
def test_a_file_that_is_none_of_ours_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "total.pt"
    run(checkpoint=path, max_batches=2)
    whole = path.read_bytes()
    if content == "foreign":
        torch.save({"weights": torch.ones(2)}, path)
    elif content == "bare":
        torch.save({"format": files.FORMAT}, path)
    elif content == "flipped":  # one bit of one number
        place = whole.index(next(iter(files.read(path)[0].totals.values())).numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
    else:
        path.write_bytes({"": b"", "text": b"hello", "half": whole[: len(whole) // 2]}[content])
    before = path.read_bytes()
    with pytest.raises(hbp.InputError, match="left as it is"):
        run(checkpoint=path)
    with pytest.raises(hbp.InputError, match="left as it is"):
        hbp.Total.load(path, COMPILED.model)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", cases([7, 41], [41], "more places of the same file"))
def test_a_bit_that_is_another_is_noticed_wherever_it_is(tmp_path, step):
    """In a number, a name, a count, or in how the file is laid out: an error, or nothing that is read is another."""
    path, dice, refused = tmp_path / "total.pt", random.Random(0), 0
    run(checkpoint=path, max_batches=2)
    whole, (held, header) = path.read_bytes(), files.read(path)
    pickled = whole.index(b"data.pkl"), whole.index(b"data/0")
    places = [*range(*pickled, step), *dice.sample(range(len(whole)), 400 // step)]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << dice.randrange(8))]) + whole[place + 1:])
        try:
            found, own_header = files.read(path)
        except hbp.InputError:
            refused += 1
        else:
            assert own_header == header
            assert (found.samples, found.first, found.stored) == (held.samples, held.first, held.stored)
            assert_same(hbp.Total(found, header), hbp.Total(held, header))
    assert refused > len(places) / 3


@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_where_a_file_cannot_be_written_the_old_one_stays(tmp_path, monkeypatch, where):
    path = tmp_path / "total.pt"
    run(checkpoint=path, max_batches=2)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if where == "at the end":
        monkeypatch.setattr(files.os, "fsync", full)
    else:  # the system writes no file of this process's further than there
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        with pytest.raises(hbp.InputError, match=r"could not be written .* what was there before is untouched"):
            run(checkpoint=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["total.pt"]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of its own that a first checkpoint fits into, and no second beside it."""
    run(checkpoint=tmp_path / "measured.pt", max_batches=1)
    size = (tmp_path / "measured.pt").stat().st_size
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", str(folder)], check=True,
                       capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"file systems are not to be mounted here: {getattr(error, 'stderr', None) or error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(full_disk):
    path = full_disk / "total.pt"
    run(checkpoint=path, max_batches=2)
    before = path.read_bytes()
    with pytest.raises(hbp.InputError, match="No space left on device"):
        run(checkpoint=path)
    assert path.read_bytes() == before
    assert [file.name for file in full_disk.iterdir()] == ["total.pt"]
    assert files.read(path)[1].batches == 2


@slow("a process of its own; a full disk, too, must leave the file as it was")
def test_a_process_that_is_killed_while_it_writes_loses_nothing(tmp_path):
    path = tmp_path / "total.pt"
    script = textwrap.dedent("""
        import os, signal, sys
        from hbpcompiler.accumulate import checkpoint as files
        from tests.accumulate.test_checkpoints import run
        written = []

        def dying(held, file):
            written.append(1)
            if len(written) == 3:
                file.write(b"half")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(held, file)

        save, files.torch.save = files.torch.save, dying
        run(checkpoint=sys.argv[1], checkpoint_every=0)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, cwd=Path(__file__).parents[2],
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == -signal.SIGKILL
    _, header = files.read(path)
    assert header.batches == 2
    assert_same(run(checkpoint=path), run())


def test_save_load_merge_and_to(tmp_path):
    total = run()
    path = total.save(tmp_path / "deep" / "total.pt")
    loaded = hbp.Total.load(path, COMPILED.model)
    assert_same(loaded, total)
    assert (loaded.samples, loaded.quantities) == (sum(LENGTHS), COMPILED.quantities)
    assert total.to(dtype=torch.float32).grad["0.weight"].dtype == torch.float32
    assert total.grad["0.weight"].dtype == torch.float64
    other = run(compiled=hbp.compile(network(), None, ["grad"]))
    with pytest.raises(hbp.InputError, match="quantities: "):
        hbp.Total.merge(total, other)
    with pytest.warns(hbp.TotalWarning, match="the same numbers to the last bit"):  # one file, named twice
        assert total.merge(hbp.Total.load(path, COMPILED.model)).samples == 2 * total.samples
    assert "samples=13" in repr(total)
    with pytest.raises(AttributeError, match="'diag_h' was not accumulated"):
        _ = total.diag_h
    with pytest.raises(KeyError):
        total.grad["nothing"]


def test_wrong_arguments():
    for options, text in (({"dtype": torch.int32}, "dtype"), ({"checkpoint_every": -1}, "checkpoint_every"),
                          ({"max_batches": 0}, "max_batches"), ({"count": lambda batch: float("nan")}, "count gave")):
        with pytest.raises(hbp.InputError, match=text):
            run(**options)
    with pytest.raises(hbp.InputError, match=r"what hbp\.compile returned"):
        hbp.accumulate(COMPILED.model, batches())
    with pytest.raises(hbp.InputError, match="no samples"):
        run([])
