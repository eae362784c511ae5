"""What torch's stand-ins note of the tensors that they stand for.

A mode of stand-ins (FakeTensorMode) lives as long as a trace does, and knows every tensor it has described by a weak
reference. torch.utils.swap_tensors, and so what torch.__future__.set_swap_module_params_on_conversion makes of
model.to(...), refuses tensors that have any.
"""

from __future__ import annotations

from typing import Any


def forget_described(program: Any) -> None:
    """The notes of an ExportedProgram that is ready: a tensor that is met again is described anew."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    for mode in {id(value.fake_mode): value.fake_mode for value in values if hasattr(value, "fake_mode")}.values():
        mode.fake_tensor_converter.meta_converter.describer.lookup_tensor.clear()
