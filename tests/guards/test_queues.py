"""Queues, dicts and generators that a forward changes are afterwards what they were, whatever becomes of the call."""

import collections
import queue
import threading

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.guards.queues import queues_noted, undo, waiting
from tests.custom_op import Doubled

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])


class Filling(nn.Module):
    def __init__(self, held, act, then=lambda x: x):
        super().__init__()
        self.layer, self.held, self.act, self.then = nn.Linear(3, 2), held, act, then

    def forward(self, x):
        self.act(self.held)
        return self.then(self.layer(x))


def moved_on(held):
    held.put(held.get_nowait() + 1)


REFUSED = {"": lambda x: x, "as it mixes": lambda x: x.softmax(0), "by the proof": Doubled.apply}
ACTS = {"put": lambda held: held.put(2), "moved on": moved_on, "taken": lambda held: held.get(timeout=1)}


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_queues_hold_what_they_held(kind, act, refused):
    held = kind()
    for item in (9, 1, 5, 7, 3, 8, 6, 2, 4, 0, *range(10, 100)):
        held.put(item)
    before = list(held.queue), held.unfinished_tasks
    compiled = hbp.compile(Filling(held, ACTS[act], REFUSED[refused]), nn.CrossEntropyLoss(), quantities=["grad"])
    if refused:
        with pytest.raises(hbp.HbpError):
            compiled(X, Y)
    else:
        compiled(X, Y)
        compiled.verify(X, Y)
    found = list(held.queue)
    assert (sorted(found) if kind is queue.PriorityQueue else found, held.unfinished_tasks) == (
        sorted(before[0]) if kind is queue.PriorityQueue else before[0], before[1])


def test_what_other_threads_put_there_stays():
    held = queue.Queue()

    def act(held):
        other = threading.Thread(target=held.put, args=("another's",))
        other.start()
        other.join()
        held.put("own")

    hbp.compile(Filling(held, act), quantities=["grad"])(X, Y)
    assert held.queue
    assert set(held.queue) == {"another's"}


def test_what_this_thread_does_is_noted_within_alone():
    held = queue.Queue()
    with queues_noted():
        held.put(1)
        undo(held, waiting(held))
    held.put(2)
    undo(held, None)
    assert list(held.queue) == [2]
    assert queue.Queue.put.__module__ == "queue"


def test_two_threads_that_end_in_turns():
    own, entered, ended, held = queue.Queue.put, threading.Event(), threading.Event(), queue.Queue()

    def other():
        with queues_noted():
            entered.set()
            ended.wait()
            held.put("another's")

    thread = threading.Thread(target=other)
    with queues_noted():
        thread.start()
        entered.wait()
        held.put(1)
        undo(held, None)
    assert queue.Queue.put is not own
    ended.set()
    thread.join()
    assert queue.Queue.put is own
    assert list(held.queue) == ["another's"]


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_dicts_keep_their_order(kind):
    held = kind(a=1, b=2)
    hbp.compile(Filling(held, lambda held: held.__setitem__("a", held.pop("a"))), quantities=["grad"])(X, Y)
    assert list(held) == ["a", "b"]


@pytest.mark.parametrize("then", [REFUSED["as it mixes"], REFUSED["by the proof"],
                                  lambda x: torch.linalg.lstsq(x[:, :, None], x[:, :, None]).solution.flatten(1)])
def test_a_refused_call_has_drawn_nothing(then):
    model = Filling(None, lambda held: None, lambda x: then(nn.functional.dropout(x)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(hbp.HbpError):
        hbp.compile(model, quantities=["grad"])(X, Y)
    assert torch.equal(torch.get_rng_state(), before)
