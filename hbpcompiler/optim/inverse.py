"""The inverse of a damped average, found every so many steps: a block at a time, in the memory of the last one's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hbpcompiler.curvature import Block, Curvature
from hbpcompiler.curvature.outline import outline
from hbpcompiler.curvature.spread import hand_on, spread
from hbpcompiler.optim.together import Together


class Inverse:
    """(average + damping)^-1. Of several ranks each finds the inverses of some blocks, and hands them to the others."""

    def __init__(self, split: str, together: Together) -> None:
        self.split, self.together = split, together
        self.blocks: dict[tuple[str, ...], Block] = {}
        """By their parameters."""
        self.lost = False
        """Whether the last one's memory has been written over, and no other was found: nothing may be divided by it."""

    @property
    def curvature(self) -> Curvature | None:
        blocks = list(self.blocks.values())
        return Curvature(blocks, [name for block in blocks for name in block.names]) if blocks else None

    def drop(self) -> None:
        """Its memory makes room for what the next one needs first."""
        self.blocks, self.lost = {}, True

    def find(self, names: Sequence[str], block_of: Callable[[str], Block], dampings: Mapping[str, float]) -> None:
        """Of the blocks by these names; all others are dropped. Eigenvectors, in float64, are given up at once."""
        self.lost = True
        if self.together.several:
            found = self._found_by_ranks([block_of(name) for name in names], dampings)
        else:
            found = [self._found(block_of(name), dampings) for name in names]
        self.blocks = {names: self.blocks[names] for names in found}
        self.lost = False

    def _found(self, block: Block, dampings: Mapping[str, float]) -> tuple[str, ...]:
        """Its names, by which its inverse is among the blocks then."""
        last = self.blocks.pop(block.names, None)
        former = {block.names: last} if last is not None and type(last) is type(block) else {}
        del last  # what is not written over makes room
        damping = {name: dampings[name] for name in block.names}
        inverse = Curvature([block], block.names)._power(-1.0, damping, self.split, former).blocks[0]
        for matrix in (*inverse.symmetric_matrices, *block.symmetric_matrices):
            matrix.forget()
        self.blocks[block.names] = inverse
        return block.names

    def _found_by_ranks(self, blocks: list[Block], dampings: Mapping[str, float]) -> list[tuple[str, ...]]:
        """Diagonals by each rank, which are the same on all."""
        shared = [block for block in blocks if block.symmetric_matrices]
        for block in blocks:
            if not block.symmetric_matrices:
                self._found(block, dampings)
        matrices = [[matrix.matrix for matrix in block.symmetric_matrices] for block in shared]
        owners, outlines = spread(matrices, lambda number: outline(self.blocks[self._found(shared[number], dampings)]),
                                  self.together.group)
        for block, owner, told in zip(shared, owners, outlines, strict=True):
            last = self.blocks.pop(block.names, None)
            if last is not None and owner == self.together.ranks.rank:
                tensors = {name: tensor.contiguous() for name, tensor in last.tensors.items()}
            else:  # eigenvectors may be others' too
                held = last.tensors if last is not None and last.symmetric_matrices else {}
                tensors = told.empty(held, block.device)
            for tensor in tensors.values():
                hand_on(tensor, owner, self.together.group)
            self.blocks[block.names] = told.block(block.place, tensors)
        return [block.names for block in blocks]
