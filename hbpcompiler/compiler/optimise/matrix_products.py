"""An optimisation pass: einsums become products of matrices, or of entries.

Rules and routes say what is summed over what; here it is decided what multiplies.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import gram, pixel_gram
from hbpcompiler.compiler.program.kernels import AS_ROWS
from hbpcompiler.compiler.program.products import product_over_pixels


def multiply_matrices(graph: fx.Graph, pixel_by_pixel: bool = False) -> None:
    """einsum("no,ni->oi", a, b) is a.t() @ b, einsum("npi,npi->i", a, b) is (a * b).sum((0, 1)): both cost less.

    Columns of images may lie pixel by pixel: then such a product is one over pixels.
    """
    for node in list(graph.nodes):
        if node.target is torch.einsum:
            _multiply(graph, node, pixel_by_pixel)
        elif node.target is gram and pixel_by_pixel and _of_pixels(meta.letters(node), node.kwargs["axis"]):
            node.target = pixel_gram


def _of_pixels(letters: str, axis: Any) -> bool:
    """Whether these are columns of images, of which the Gram matrix of the channels is taken."""
    return len(letters) == 4 and axis == 2 and letters.startswith("nk") and letters.endswith("p")


def _multiply(graph: fx.Graph, node: fx.Node, pixel_by_pixel: bool) -> None:
    operands: Any = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
    terms, _, result = str(node.args[0]).partition("->")
    alone = len(operands) == 1 and len(set(terms)) == len(terms)
    if alone and result == "".join(letter for letter in terms if letter in result):
        _sum_out(graph, node, operands[0], terms, result)
        return
    if len(operands) != 2:
        return
    left, right = terms.split(",")
    if left == right and result == "".join(letter for letter in left if letter in result) != left:
        _multiply_entries(graph, node, operands, left, result)
        return
    summed = "".join(letter for letter in left if letter in right)
    own, other = (letters.translate(dict.fromkeys(map(ord, summed))) for letters in (left, right))
    if own + summed == left and right == summed + other and result == own + other and len(right) == 2:
        _multiply_rows(graph, node, operands)
        return
    if not summed or len(own) != 1 or len(other) != 1 or result != own + other:
        return  # not a matrix product
    square = operands[0] is operands[1] and left.replace(own, other) == right
    with graph.inserting_before(node):
        if pixel_by_pixel and left == f"nk{own}p" and right == f"nk{other}p":
            images = [_method(graph, node, "flatten", operand, 0, 1) for operand in operands[: 1 if square else 2]]
            product = graph.call_function(product_over_pixels, (images[0], images[-1]))
        else:
            first = _matrix(graph, node, operands[0], left, own, summed)
            second = first if square else _matrix(graph, node, operands[1], right, other, summed)
            product = graph.call_function(operator.matmul, (first, transposed(graph, node, second)))
    meta.move(product, node)
    if product.target is operator.matmul and any(summed not in letters for letters in (left, right)):
        meta.set_equation(product, f"{terms}->{result}")
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _sum_out(graph: fx.Graph, node: fx.Node, operand: fx.Node, letters: str, kept: str) -> None:
    """einsum("nko->n", x) is x.sum((1, 2))."""
    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in kept)
    if not axes:
        return
    with graph.inserting_before(node):
        total = _method(graph, node, "sum", operand, axes if len(axes) > 1 else axes[0])
    meta.move(total, node)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _multiply_entries(graph: fx.Graph, node: fx.Node, operands: Sequence[fx.Node], letters: str, kept: str) -> None:
    """The sum of an elementwise product, which einsum would take for many small matrix products."""
    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in kept)
    with graph.inserting_before(node):
        product = graph.call_function(operator.mul, tuple(operands))
        total = _method(graph, node, "sum", product, axes if len(axes) > 1 else axes[0])
    meta.place(product, node)
    meta.move(total, node)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _multiply_rows(graph: fx.Graph, node: fx.Node, operands: Sequence[fx.Node]) -> None:
    """einsum("nko,oz->nkz", x, matrix) is x @ matrix."""
    with graph.inserting_before(node):
        product = graph.call_function(operator.matmul, tuple(operands))
    meta.move(product, node)
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def _matrix(graph: fx.Graph, node: fx.Node, operand: fx.Node, letters: str, own: str, summed: str) -> fx.Node:
    """An operand as [own, summed]: a view, or a copy where the summed letters do not lie together."""
    if letters.startswith("n") and own + summed == letters[1] + "n" + letters[2:] and _made_here(operand):
        operand.target = AS_ROWS[operand.target]
        return operand
    if summed not in letters:
        order = tuple(letters.index(letter) for letter in own + summed)
        operand, letters = _method(graph, node, "permute", operand, order), own + summed
    if len(summed) > 1:
        start = letters.index(summed)
        ends = (start,) if letters.endswith(summed) else (start, start + len(summed) - 1)
        operand = _method(graph, node, "flatten", operand, *ends)
    return operand if letters.startswith(own) else _method(graph, node, "t", operand)


def _made_here(operand: fx.Node) -> bool:
    """Whether these are patches that nothing else reads, so that they may be made as the product has them."""
    return operand.target in AS_ROWS and len(operand.users) == 1


def transposed(graph: fx.Graph, node: fx.Node, matrix: fx.Node) -> fx.Node:
    """What the matrix is the transpose of, or its transpose."""
    if matrix.op == "call_method" and matrix.target == "t" and isinstance(matrix.args[0], fx.Node):
        return matrix.args[0]
    return _method(graph, node, "t", matrix)


def _method(graph: fx.Graph, like: fx.Node, name: str, matrix: fx.Node, *arguments: Any) -> fx.Node:
    """A view, in the block and step of the node that it is made for."""
    made = graph.call_method(name, (matrix, *arguments))
    meta.place(made, like)
    shape = meta.shape(matrix)
    if name == "t" and shape is not None:
        meta.set_tensor(made, shape[::-1], meta.dtype(matrix))
    return made
