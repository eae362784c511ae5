"""The head of a file explains the names that occur in it, and no others."""

import pytest

from hbpcompiler.codegen.legend import LEGEND, SUFFIXES, legend
from hbpcompiler.codegen.roles import Where
from hbpcompiler.compiler.derive.close import PART
from hbpcompiler.compiler.plan.pieces import PREFIX


def test_what_occurs_is_explained():
    text = legend("        g_fc = x @ w  # [N, 3]\n        A_kfac_fc = inputs_fc / N\n        total = x")
    assert "g_ gradient" in text
    assert LEGEND["A"] in text
    assert LEGEND["S"] not in text


def test_names_in_a_table_and_of_calls_with_several_values():
    text = legend("    g, M = relu_back(x, g, M)\n    inputs[path] = f(x)\n    (w, T_g_weight) = f(x)")
    for prefix in ("g", "M", "T"):
        assert LEGEND[prefix] in text, prefix


def test_what_is_only_read_is_not_explained():
    assert "gradient" not in legend("    y = f(g_fc)")


@pytest.mark.parametrize("prefix", sorted({*PART.values(), *PREFIX.values()}))
def test_all_kinds_of_names_are_explained(prefix):
    meaning = LEGEND.get(prefix) or LEGEND[prefix.partition("_")[0]]
    assert meaning in legend(f"    {prefix}_weight = x")


def test_ends_of_names_are_explained():
    text = legend("    S_fc_rows_2 = S_fc.flatten(0, 1)")
    assert SUFFIXES["rows"] in text
    assert SUFFIXES["col"] not in text


def test_what_is_but_turned_is_no_kind_of_result():
    assert "turned" not in legend("        turned = weight.t()\n")
    assert SUFFIXES["turned"] in legend("        weight_turned = weight.t()\n")


def test_squares_in_bases_are_no_bases_and_no_other_squares():
    text = legend("        basis_squares_ggn_weight = x\n        in_basis_S_weight = x\n")
    assert "basis_squares_ sum_{nk} (Q_B^T T Q_A)^2" in text
    assert "in_basis_ T in its bases" in text
    assert LEGEND["basis"] not in text
    assert f"squares_ {LEGEND['squares']}" not in text


def test_letters_of_formulas_are_explained():
    text = legend("    S_fc = x", formulas=["weight: T = sum_p S[nkpo] U[npi], B = sum S S^T / P"])
    for meaning in ("S any columns", "U the operand", "P the number", "p positions", "o outputs", "i inputs"):
        assert meaning in text
    assert "channels" not in text
    assert "In formulas" not in legend("    S_fc = x")


def test_operands_and_values_of_formulas_are_explained():
    text = legend("    d_fc = x", formulas=["d S,  d = y'(x)"])
    assert "x an operation's operand" in text
    assert "y what it makes of that" in text
    assert "operand" not in legend("    d_fc = x", formulas=["S W"])
    assert "E the mean over draws" in legend("    M_fc = x", formulas=["E sum_k M M^T = Hessian"])


def test_squares_of_each_sample_are_no_sums_of_each_sample():
    text = legend("    each_square_ggn_weight = x")
    assert LEGEND["each_square"] in text
    assert LEGEND["each"] not in text


def test_a_module_that_is_called_as_a_kind_of_result_explains_nothing():
    where = Where(frozenset({"sum"}), {"fc_weight": "weight"})
    assert LEGEND["sum"] not in legend("    sum_mean = f(x)", where=where)
    assert LEGEND["sum"] in legend("    sum_gradient_fc_weight = f(x)", where=where)


def test_divisors_and_roots_are_explained_where_there_are_some():
    assert "number P of positions" in legend("    B_fc = gram(x, axis=2, over=N * 4)")
    assert "are divided where the results are made" in legend("    B_fc = gram(x, axis=2, over=N)")
    assert "number P of positions" not in legend("    B_fc = sum_outer(x)")
    assert "in the processor's cache" in legend("    B_fc = gram(x, axis=2, chunk=1820, over=N)")
    assert "in the processor's cache" not in legend("    B_fc = gram(x, axis=2, over=N)")


def test_what_docstrings_say_is_no_statement():
    about = '    """conv2d, back, at 2 places.  T = sum_p\n    S[nkop] U[nip], sum_n T, B = sum S S^T"""'
    text = legend(f"{about}\n    M_x = y")
    assert "M_ sampled GGN columns" in text
    assert "S_ GGN columns" not in text
    assert "may round to below zero" in legend("    norms = total_squared_norm_gradient.abs().sqrt()")


def test_letters_in_shapes_are_explained_where_there_are_some():
    assert "differ between calls" in legend("    T = f(x)  # [n, 1, a, 5]")
    assert "differ between calls" not in legend("    T = f(x)  # [n, 1, 4, 5*N]")
