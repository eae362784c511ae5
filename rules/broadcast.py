"""torch.broadcast_tensors: result i is tensor i, repeated along the axes in which it has length one."""

from hbpcompiler.rule import ZERO, Case, Op, Rule, Shape, Structure, Tensor


def shapes(op: Op) -> list[Shape]:
    found: list[Shape] = list(op.shape("tensors"))
    return found


def has_samples(op: Op, i: int) -> bool:
    """Whether tensor i of the list has a sample axis."""
    return op.has_samples("tensors") or op.has_samples(f"tensors.{i}")


def forward(op: Op) -> Tensor:
    tensor, shape = op.tensors[op.index], shapes(op)[op.index]
    if has_samples(op, op.index):
        return tensor if shape == op.shape("output") else tensor.expand(-1, *op.shape("output"))
    sampled = [other for i, other in enumerate(op.tensors) if has_samples(op, i)]
    return tensor.expand(*[other.shape[0] for other in sampled[:1]], *op.shape("output"))


def jac_t(op: Op, columns: Tensor, index: int) -> Tensor:
    """Add up what was repeated; a tensor gets nothing from another's result."""
    shape = shapes(op)[index]
    if index != op.index:
        return columns.new_zeros(1).expand(columns.shape[0], columns.shape[1], *shape)
    repeated = [
        axis + 2 for axis, (mine, all_) in enumerate(zip(shape, op.shape("output"), strict=True)) if mine != all_
    ]
    return columns.sum(repeated, True) if repeated else columns


def refuse(op: Op) -> str | None:
    for i, shape in enumerate(shapes(op)):
        if has_samples(op, i) and len(shape) != len(op.shape("output")):
            return (
                f"tensor {i} has fewer axes than the result, so its sample axis meets another axis; "
                "give it its axes of length one, as in x.unsqueeze(1)"
            )
    return None


RULE = Rule(
    operations=["aten.broadcast_tensors"],
    forward=forward,
    jac_t={"tensors": jac_t},
    residual=ZERO,
    structure=Structure.SELECTION,
    refuse=refuse,
    cases=[
        Case({"tensors": [(2, 3), (2, 3)]}, batched=("tensors",)),
        Case({"tensors": [(2, 3), (2, 3)]}, batched=("tensors",), index=1),
        Case({"tensors": [(1, 3), (2, 1)]}, batched=("tensors",)),
        Case({"tensors": [(1, 3), (2, 1), (1, 1)]}, batched=("tensors",), index=2),
    ],
)
