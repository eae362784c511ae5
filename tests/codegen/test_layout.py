"""Long lines are broken where Python allows it: the same tokens, no line over the width, shapes at their statements."""

import ast
import tokenize

import pytest

from hbpcompiler.codegen.layout import WIDTH, laid_out, wrapped

LONG = [
    "scattered = values.new_zeros(1).expand(values.shape[0], 4, 36).scatter_add(-1, index.unsqueeze(1).expand_as("
    "values), values)  # [N, 2, 4, 36]",
    'squared = torch.einsum("nkop,nopi->nkoi, or a text with, commas (and brackets", [pooled_S, torch.embedding(rows, '
    "index + first)])  # [N, 6, 4, 9]",
    "patches = x.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3).unfold(2, 3, 1)"
    ".unfold(3, 3, 1)  # [n, 9, 36]",
    "total = first_long_name.square().sum((0, 1)) - second_long_name.square().sum((0, 1)) * third_long_name + "
    "fourth_long_name",
    "x = (-1 * aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa + bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb * cccccccccccccccccccccccccc)."
    "flatten(0, 1) * -2",
    f"({', '.join(f'g_{place}' for place in range(40))}) = cat_back(column, weight)  # [N, 3]",
    f"({', '.join(f'g_{place}' for place in range(40))}) = column + weight",
    f"[{', '.join(f'g_{place}' for place in range(40))}] = cat_back({', '.join(['column'] * 20)})",
]


def tokens(text):
    """Without comments, line ends and round brackets, which breaking adds."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    return [token.string for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__)
            if token.type not in skipped and token.string not in "()"]


@pytest.mark.parametrize("line", LONG)
@pytest.mark.parametrize("indent", [0, 8, 12])
def test_statements(line, indent):
    lines = wrapped(" " * indent + line)
    assert len(lines) > 1
    assert max(map(len, lines)) <= WIDTH
    assert all(part.startswith(" " * indent) for part in lines)
    text = "\n".join(part[indent:] for part in lines)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(line))
    assert tokens(text) == tokens(line)
    if "#" in line:
        assert any(part.endswith(line[line.rindex("#"):]) for part in lines)


def test_the_end_of_a_functions_head():
    head = ["def back(", "    column: Tensor,", f") -> Tuple[{', '.join(['Tensor'] * 40)}]:", "    pass"]
    lines = [part for line in head for part in wrapped(line)]
    assert max(map(len, lines)) <= WIDTH
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse("\n".join(head)))


def test_what_fits_stays():
    line = " " * 8 + "x = y.flatten(0, 1) @ weight  # [N, 3]"
    assert wrapped(line) == [line]


def test_a_shape_that_does_not_fit_stands_above():
    code = "x = " + " + ".join(["value"] * 14)
    assert wrapped(f"{code}  # [N, 3, 4, 5]") == ["# [N, 3, 4, 5]", code]


def test_deletes_are_several():
    lines = wrapped("    del " + ", ".join(f"value_{number}" for number in range(30)))
    assert len(lines) > 1
    assert max(map(len, lines)) <= WIDTH
    names = [target.id for statement in ast.parse("\n".join(line[4:] for line in lines)).body
             for target in statement.targets]
    assert names == [f"value_{number}" for number in range(30)]


def test_prose_is_wrapped_and_nothing_lost():
    text = '"""A file.\n\nQuantities: ' + ", ".join(f"quantity_{number}" for number in range(40)) + '\n"""\n\nx = 1\n'
    found = laid_out(text)
    assert max(map(len, found.splitlines())) <= WIDTH
    assert found.split() == text.split()


@pytest.mark.parametrize("before", range(60, 100, 3))
def test_a_formula_of_a_heading_is_not_broken(before):
    formulas = ["T = sum_p S[nkop] U[nip]", "sum_{nk} T^2", "B = sum S S^T / P", "T[n] sum_m T[m]"]
    lines = wrapped(f"    # {'x' * before}: conv2d    weight: {', '.join(formulas)};  bias: likewise")
    assert len(lines) > 1
    assert max(map(len, lines)) <= WIDTH
    assert all(any(formula in line for line in lines) for formula in formulas)
    assert "".join(lines).isascii()
