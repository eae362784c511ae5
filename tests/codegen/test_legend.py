"""The head of a file explains the names that occur in it, and no others."""

from hbpcompiler.codegen.legend import LEGEND, legend


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
