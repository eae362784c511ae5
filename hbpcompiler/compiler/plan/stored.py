"""How the parameters of a program are laid out over a layer's outputs and inputs, as their einsums say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.routes import Site
from hbpcompiler.compiler.trace.graph import Value
from hbpcompiler.values import INPUTS_FIRST, OUTPUTS_FIRST, Stored


def stored(plan: Plan, parameters: Iterable[Value]) -> Mapping[str, Stored]:
    """These parameters by name, in their order."""
    layouts: dict[str, str] = {}
    for step in plan.closings():
        if layout := _layout(step.site):
            layouts[step.parameter.key] = layout
    return {value.key: Stored(tuple(value.sample_shape), value.dtype, layouts.get(value.key, ""),
                              plan.joint.biases.get(value.key, ""), plan.curvature_dtype) for value in parameters}


def _layout(site: Site) -> str:
    """Groups are always the first part of the first axis."""
    shared, outer, features = site.shared, site.outer, site.features
    if not (outer and features):
        return ""
    orders = {shared + outer + features: OUTPUTS_FIRST, shared + features + outer: INPUTS_FIRST}
    return orders.get(site.theta, "")
