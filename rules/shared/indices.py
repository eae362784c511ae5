"""Tensors of indices along some axes, the same for all samples: x[:, index]."""

from hbpcompiler.rule import Op


def indexed(op: Op) -> list[int]:
    """The axes of the input that have an index, the sample axis included."""
    found = [axis for axis in range(len(op.shape("self")) + 1) if op.has(f"indices.{axis}")]
    return found or [axis for axis, index in enumerate(op.indices) if index is not None]


def index_shape(op: Op, axis: int) -> tuple[int, ...]:
    return op.shape(f"indices.{axis}") if op.has(f"indices.{axis}") else tuple(op.indices[axis].shape)


def refuse_indices(op: Op) -> str | None:
    axes = indexed(op)
    if not op.has_samples("self") or 0 in axes or op.has_samples("indices"):
        return "it picks samples, or other elements for each sample; use torch.gather along the axes after the first"
    if axes != list(range(axes[0], axes[-1] + 1)):
        return "its indices are not side by side, which moves the sample axis; index one axis after the other"
    return None

