"""What torch prints beside an error."""

import sys
import threading

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.quiet import prints_of_what_succeeds


class Counting(nn.Linear):
    def forward(self, x):
        return super().forward(x) * float(len(torch.nonzero(x > 0)))


def test_what_torch_prints_of_a_graph_is_left_out(capfd):
    """Of a try that another one follows, too."""
    with pytest.raises(hbp.CompileError, match=r"makes a number of a tensor's values"):
        hbp.compile(Counting(4, 3), quantities=["grad"])(torch.randn(2, 4), torch.tensor([0, 2]))
    assert capfd.readouterr() == ("", "")


@prints_of_what_succeeds()
def failing():
    sys.stderr.write("left out")
    raise ValueError("no")


def test_prints_of_what_succeeds(capfd):
    with prints_of_what_succeeds():
        sys.stderr.write("kept")
    with pytest.raises(ValueError, match="no"):
        failing()
    assert capfd.readouterr().err == "kept"


def test_what_other_threads_print_meanwhile_arrives(capfd):
    @prints_of_what_succeeds()
    def failing_beside():
        other = threading.Thread(target=lambda: print("of another", file=sys.stderr))
        other.start()
        other.join()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing_beside()
    assert capfd.readouterr().err == "of another\n"
