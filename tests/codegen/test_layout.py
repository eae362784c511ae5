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
    f"({', '.join(f'g_{place}' for place in range(15))}) = dot_product_attention_back({', '.join(['column'] * 9)})",
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


FITTING = {
    "x = " + " + ".join(["value"] * 14): "x = (",
    "x = some_value_with_a_long_name.another_attribute_of_it.unsqueeze(1).transpose(-1, -2).some_more_of_it": "x = (",
    f"x, y = F.max_pool2d({'value_' * 11}, 2, return_indices=True)": "x, y = F.max_pool2d(",
    f"({', '.join(['value'] * 9)}) = block({', '.join(['value'] * 4)})": "(",
    "return " + ".relu_()".join(["value"] * 9): "return (",
    f'table["a"] = values[{"first_" * 8}:first + 8192].sum()': 'table["a"] = values[',
}
"""Statements that fit a line, but not with their shapes -> their first line then."""


@pytest.mark.parametrize("code", list(FITTING))
def test_a_shape_stands_behind_its_statement(code):
    comment = f"  # [N, 3, 4, {'1' * (WIDTH - len(code) - 8)}]"
    lines = wrapped(code + comment)
    assert max(map(len, lines)) <= WIDTH
    assert lines[0] == FITTING[code]
    assert lines[-1].endswith(comment)
    assert tokens("\n".join(lines)) == tokens(code)


def test_shapes_are_not_broken():
    shapes = ", ".join(f"[N, {number}, 5, 8]" for number in range(20))
    lines = wrapped(f"    ({', '.join(f'value_{number}' for number in range(20))}) = block(x)  # {shapes}")
    assert max(map(len, lines)) <= WIDTH
    comments = [line.partition("# ")[2].strip() for line in lines if "#" in line]
    assert len(comments) > 1
    assert all(comment.startswith("[") and comment.endswith(("]", "],")) for comment in comments)
    assert " ".join(comments) == shapes
    ast.parse("\n".join(line[4:] for line in lines))


@pytest.mark.parametrize("results", [2, 16])
def test_a_functions_head_is_broken_at_its_parameters(results):
    given = ", ".join(f"value_{number}: Tensor" for number in range(6))
    head = f"def back({given}) -> Tuple[{', '.join(['Tensor'] * results)}]:"
    lines = wrapped(head)
    assert lines[0] == "def back("
    assert max(map(len, lines)) <= WIDTH
    assert ast.dump(ast.parse("\n".join([*lines, "    pass"]))) == ast.dump(ast.parse(f"{head} pass"))


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


@pytest.mark.parametrize("before", range(40, 100, 3))
def test_a_formula_of_a_heading_is_not_broken(before):
    formulas = ["weight: T = sum_p S[nkop] U[nip],", "sum_{nk} T^2 where +,", "counts of T by theta,",
                "B = sum S S^T / P,", "T[n] sum_m T[m];", "bias: likewise, T = sum_p S[nkop],", "B = sum T T^T"]
    lines = wrapped(f"    # {'x' * before}: conv2d    {' '.join(formulas)}")
    assert len(lines) > 1
    assert max(map(len, lines)) <= WIDTH
    assert all(any(formula in line for line in lines) for formula in formulas)
    assert "".join(lines).isascii()
