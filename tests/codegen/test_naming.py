"""Identifiers: names of the user's are data."""

import keyword

import pytest
import torch

from hbpcompiler.codegen.naming import Names, comment, identifier, output_fields, value_names
from hbpcompiler.compiler.trace.containers import take_apart
from tests.hand_made import mlp


@pytest.mark.parametrize("text", ["", " ", "a b", "class", "torch", "0", "1x", "ünï", "a\nimport os", '"', "__init__",
                                  "x" * 300, "print", "Result", "a__b"])
def test_identifiers(text):
    name = identifier(text)
    assert name.isidentifier()
    assert not keyword.iskeyword(name)
    assert len(name) <= 62
    assert name not in ("torch", "print", "Result", "class")


def test_a_plain_name_stays():
    assert identifier("layer_2") == "layer_2"
    assert identifier("0.weight") == "v_0_weight"


def test_comments_are_one_line():
    assert comment('a\n"b\\c\u2028d') == "a??b?c?d"


def test_names_are_handed_out_once():
    names = Names()
    assert [names.fresh("h") for _ in range(3)] == ["h", "h_2", "h_3"]
    assert names.fresh("torch") != "torch"


def test_fields_for_what_the_model_returns():
    x = torch.zeros(1)
    assert output_fields(take_apart(x)[1]) == ("output",)
    assert output_fields(take_apart({"logits": x, "states": [x, x]})[1]) == (
        "output_logits", "output_states_0", "output_states_1")


def test_every_value_has_a_name_of_its_own():
    graph = mlp()
    found = value_names(graph)
    assert found.keys() == {value.name for value in graph.values()}
    assert len(set(found.values())) == len(found)
    assert found["a.weight"] == "a_weight"
    assert found["loss"] == "loss"
