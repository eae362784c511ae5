"""Modules that are alike share a function for each of their ways; numbers and memory stay as they are."""

import re

import pytest
import torch
from torch import fx, nn

import hbpcompiler as hbp
from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.made_once import made_once
from hbpcompiler.codegen.modules import shared_by_modules
from hbpcompiler.codegen.outline import outlined
from hbpcompiler.codegen.places import PARAMETERS, SAVED, SHARED, Place
from hbpcompiler.compiler.program.writer import Block
from tests.codegen.test_outline import assert_same, both, residual, run
from tests.selection import cases, slow


def chain(modules):
    """x -> a = 2 x + 1 -> b = relu(a) in each module, forward; back: g (b > 0), times a scaling of the parameter."""
    graph, kept, places = fx.Graph(), [], {}
    x, g = graph.placeholder("x"), graph.placeholder("g")

    def made(target, args, path, part, hint="", shape=("N", "4")):
        node = graph.call_function(target, args)
        node.meta |= {"shape": shape, "dtype": torch.float32, "block": Block(path, part), "hint": hint}
        return node

    def made_of(number):
        weight = graph.placeholder(f"weight_{number}")
        weight.meta |= {"shape": ("4",), "dtype": torch.float32}
        places[weight] = Place(PARAMETERS, f"m.{number}.scale.weight")
        return weight

    for node in (x, g):
        node.meta |= {"shape": ("N", "4"), "dtype": torch.float32}
    weights = [made_of(number) for number in range(modules)]
    for number in range(modules):
        double = made(torch.mul, (x, 2), f"m.{number}.scale: mul", "forward", f"double_{number}")
        a = made(torch.add, (double, x), f"m.{number}.shift: add", "forward", f"a_{number}")
        x = made(torch.relu, (a,), f"m.{number}.act: relu", "forward", f"b_{number}")
        kept.append((double, a))
    roots = [made(torch.sqrt, (weight,), f"m.{number}.scale: mul", "backward", "", ("4",))
             for number, weight in enumerate(weights)]
    for number in reversed(range(modules)):
        double, a = kept[number]
        g = made(torch.mul, (g, a), f"m.{number}.act: relu", "backward", f"g_a_{number}")
        g = made(torch.sub, (g, double), f"m.{number}.shift: add", "backward", f"g_d_{number}")
        g = made(torch.mul, (g, roots[number]), f"m.{number}.scale: mul", "backward", f"g_x_{number}")
    graph.output((x, g))
    return graph, places


def test_what_is_made_of_parameters_alone_stands_in_a_table():
    graph, places = chain(4)
    found = made_once(graph, places)
    assert list(found.values()) == [Place(SHARED, f"m.{number}.scale") for number in range(4)]
    assert not made_once(*chain(2)), "so few are not worth a table"


def test_modules_share_a_function_for_each_way_and_keep_what_they_take_back():
    graph, places = chain(5)
    places |= made_once(graph, places)
    types = {f"m.{number}": "Piece" for number in range(5)}
    outline, saved = shared_by_modules(graph, outlined(graph, places), places, types)
    assert isinstance(outline, Outline)
    modules = [call for call in outline.calls.values() if call.function.of_module]
    assert len({id(call.function) for call in modules}) == 2
    assert [call.path for call in modules] == [f'"m.{n}"' for n in (*range(5), *reversed(range(5)))]
    assert {place.table for place in saved.values()} == {SAVED}
    assert sorted(place.key for place in saved.values()) == sorted(
        f"m.{number}.{leaf}" for number in range(5) for leaf in ("scale", "shift"))


def test_a_residual_block_is_a_call_forward_and_a_call_back(monkeypatch):
    shared, plain = both(residual([4, 4, 4, 4]), ["grad", "batch_l2", "kfac"], monkeypatch)
    program = shared.code.partition("class Program")[2]
    for path in "123":  # the last one's columns come expanded, so that its way back is another
        assert re.search(rf'block\w*\(\s*"{path}", ', program)
        assert len(re.findall(rf'block_back\w*\(\s*"{path}", ', program)) >= 1
    assert_same(run(shared, shared.program), run(plain, plain.program))
    assert shared.predicted_memory(64) <= 1.001 * plain.predicted_memory(64)


@slow("a second or more; shorter ones of its kind stay")
def test_what_a_module_keeps_leaves_its_table_on_the_way_back(monkeypatch):
    shared, _ = both(residual([4, 4, 4]), ["variance", "diag_h"], monkeypatch)
    kept = re.findall(r'^    saved\[path \+ "\.([\w.]+)"\] = ', shared.code, re.M)
    taken = re.findall(r'saved\.pop\(path \+ "\.([\w.]+)"\)', shared.code)
    assert kept
    assert sorted(kept) == sorted(taken)


@slow("alike blocks are tested")
def test_blocks_of_other_widths_are_one_function_where_few_numbers_differ(monkeypatch):
    shared, plain = both(residual([4, 4, 6, 6]), ["grad", "batch_l2"], monkeypatch)
    assert len(re.findall(r"^def block\w*\(.*-> Tensor", shared.code, re.M)) <= 3
    assert_same(run(shared, shared.program), run(plain, plain.program))


class Encoder(nn.Module):
    """Layers of attention that all read one mask, of which the last one's output alone is used."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True) for _ in range(layers))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = self.embed(x.flatten(2).transpose(1, 2)[:, :6])
        for layer in self.layers:
            h = layer(h)
        return self.head(h[:, 0])


@slow("a transformer; residual blocks are tested")
@pytest.mark.parametrize("quantities", cases([["grad", "batch_l2"], ["kfac", "diag_ggn_mc"]], [["grad", "batch_l2"]],
                                             "the same functions"))
def test_layers_of_a_transformer_share_functions(quantities, monkeypatch):
    shared, plain = both(Encoder(4).eval(), quantities, monkeypatch)
    assert len(re.findall(r"transformer_encoder_layer\w*\(\s*\"layers\.\d", shared.code)) >= 6
    assert_same(run(shared, shared.program), run(plain, plain.program))
    assert_same(run(shared, torch.jit.script(shared.program)), run(plain, plain.program))
    assert shared.predicted_memory(64) <= 1.02 * plain.predicted_memory(64)


@slow("a second or more; shorter ones of its kind stay")
def test_turns_of_samples_read_their_part_of_what_is_kept(monkeypatch):
    options = {"limits": hbp.Limits(cache_bytes=1 << 14)}
    model = residual([4, 4, 4, 4])
    shared, plain = both(model, ["grad", "kfac"], monkeypatch, **options)
    assert_same(run(shared, shared.program), run(plain, plain.program))
    if "saved_n[" in shared.code:
        assert "saved_n.clear()" in shared.code
    x, y = torch.randn(7, 3, 8, 8), torch.randint(4, (7,))
    torch.manual_seed(1)
    found = shared(x, y)
    torch.manual_seed(1)
    assert_same(found.grad, plain(x, y).grad)


class Twice(nn.Module):
    """Blocks of which each is called twice, with others between the calls."""

    def __init__(self):
        super().__init__()
        self.blocks = residual([4, 4, 4])[1:4]
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        h = self.first(x)
        for _ in range(2):
            for block in self.blocks:
                h = block(h)
        return self.head(h.mean((2, 3)))


def test_modules_that_are_called_twice_keep_each_call_apart(monkeypatch):
    shared, plain = both(Twice().eval(), ["grad", "batch_l2"], monkeypatch)
    assert_same(run(shared, shared.program), run(plain, plain.program))


@slow("torch.compile takes its time")
def test_torch_compile_reads_the_tables(monkeypatch):
    shared, plain = both(residual([4, 4, 4]), ["grad", "batch_l2"], monkeypatch)
    traced = torch.compile(shared.program, backend="eager", fullgraph=True)
    assert_same(run(shared, traced), run(plain, plain.program))
