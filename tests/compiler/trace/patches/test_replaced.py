"""Attributes that are others for a while, and for one thread alone."""

import math
import threading

import pytest

from hbpcompiler.compiler.trace.patches.replaced import replaced


class Base:
    size = 1

    def twice(self, x):
        return 2 * x


class Derived(Base):
    pass


def test_what_was_inherited_is_so_again():
    with replaced(Derived, "size", 5), replaced(Derived, "twice", lambda self, x: 3 * x):
        assert (Derived.size, Derived().twice(2), Base().twice(2)) == (5, 6, 4)
    assert not {"size", "twice"} & set(vars(Derived))
    with pytest.raises(ZeroDivisionError), replaced(Base, "size", 5):
        _ = 1 / 0
    assert Base.size == 1


def test_functions_are_replaced_in_this_thread_alone():
    own, elsewhere = math.sqrt, []
    with replaced(math, "sqrt", lambda x: -1.0):
        thread = threading.Thread(target=lambda: elsewhere.append(math.sqrt(4.0)))
        thread.start()
        thread.join()
        assert math.sqrt(4.0) == -1.0
    assert elsewhere == [2.0]
    assert math.sqrt is own
