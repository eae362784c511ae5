"""A product and what is added to it, beta self + alpha mat1 mat2: a weight and a bias, or a value in its place."""

from collections.abc import Mapping

from hbpcompiler.rule import ZERO, Case, Contraction, Op, Rule, Structure, Tensor

from .shared.aligned import added, misaligned, scaled, unbroadcast


def addmm_forward(op: Op) -> Tensor:
    return scaled(op.mat1 @ op.mat2, op.alpha) + scaled(op.self, op.beta)


def addmm_params(op: Op) -> Mapping[str, Contraction]:
    equation = "nkpo,npi->nkio" if len(op.shape("mat1")) > 1 else "nko,ni->nkio"
    weight = Contraction(equation, operand=lambda op: scaled(op.mat1, op.alpha))
    if op.has_samples("self"):
        return {"mat2": weight}
    return {"self": added(op, "self", lambda op: op.beta), "mat2": weight}


def addmm_refused(op: Op) -> str | None:
    if not op.has_samples("mat1") or op.has_samples("mat2"):
        return "only samples times a weight have a rule; write anything else as a product and an addition"
    return misaligned(op, ("self",))


ADDMM = Rule(
    operations=["aten.addmm"],
    forward=addmm_forward,
    jac_t={
        "self": lambda op, columns: unbroadcast(op, "self", scaled(columns, op.beta)),
        "mat1": lambda op, columns: scaled(columns, op.alpha) @ op.mat2.t(),
    },
    params=addmm_params,
    residual=ZERO,
    formula="beta S to what is added, alpha S W^T to the factor",
    structure=Structure.CONSTANT,
    refuse=addmm_refused,
    merged=True,
    cases=[
        Case({"self": shape, "mat1": (4,), "mat2": (4, 3)}, {"alpha": alpha, "beta": beta}, ("mat1",))
        for shape in ((3,), (1,), (1, 3))
        for alpha, beta in ((1, 1), (0.5, -2.0))
    ]
    + [
        Case({"self": shape, "mat1": (4,), "mat2": (4, 3)}, {"alpha": 0.5, "beta": -2.0}, ("self", "mat1"))
        for shape in ((3,), (1,))
    ],
)
