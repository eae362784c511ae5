"""Every rule over the parts of a sample (`rule.positions`): three samples as the three parts of one."""

import pytest
import torch

from hbpcompiler.rule import PIECES, ZERO, Diagonal, Op, Rule
from hbpcompiler.rule.positions import over_positions
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing.compare import close
from hbpcompiler.testing.setting import SAMPLES, Setting

RULES = {id(rule): rule for _, rule in builtin() if isinstance(rule, Rule)}.values()


def settings(rule):
    """Two cases of a rule that have a sample in every list of tensors, and no list."""
    cases = [case for case in rule.cases if not any(isinstance(shape, list) for shape in case.shapes.values())
             and not any(isinstance(item, list) and any(hasattr(part, "shape") for part in item)
                         for item in case.attributes.values()) and set(case.batched) & set(case.shapes)]
    return [Setting(rule, rule.operations[0], case) for case in (cases[:1] + cases[-1:])]


def as_parts(setting, op):
    """The same tensors as one sample of three parts."""
    names = list(setting.case.shapes)
    shapes = {name: (SAMPLES, *op.shape(name)) if setting.batched(name) else op.shape(name) for name in names}
    shapes["output"] = (SAMPLES, *op.shape("output"))
    attributes = {name: item for name, item in setting.arguments.items() if name not in names}

    def tensors(name):
        own = op.argument(name)
        return own if name in names and not setting.batched(name) else own.unsqueeze(0)

    return Op(tensors, attributes, shapes, index=setting.case.index, active=op.varying(),
              batched=frozenset({name for name in names if setting.batched(name)} | {"output"}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.operations[0])
def test_parts_are_samples_by_themselves(rule):
    whole = over_positions(rule)
    for setting in settings(rule):
        torch.manual_seed(0)
        op = setting.op()
        parts = as_parts(setting, op)
        columns = torch.randn(SAMPLES, 2, *op.shape("output"), dtype=torch.float64)
        own = columns.transpose(0, 1).unsqueeze(0)
        for name, _ in setting.inputs(setting.active()):
            expected = rule.jac_t[name](op, columns)
            expected = expected.transpose(0, 1) if setting.batched(name) else expected.sum(0)
            close(whole.jac_t[name](parts, own)[0], expected, f"{rule.operations[0]}: {name}")
        for name, contraction in rule.params(op).items():
            joined = whole.params(parts)[name]
            close(total(joined, parts, own)[0], total(contraction, op, columns).sum(0), name)
            assert (joined.index is None) == (contraction.index is None)
            if joined.index is not None and joined.operand is not None:
                at = joined.index(parts)
                units = torch.nn.functional.one_hot(at.clamp(min=0), joined.operand(parts).shape[-1])
                close(units * (at >= 0).unsqueeze(-1).double(), joined.operand(parts), f"{name}: its index")
        check_residual(rule, whole, setting, op, parts)


def total(contraction, op, columns):
    """[N, K, parameter]."""
    given = [contraction.columns(op, columns)] + ([] if contraction.operand is None else [contraction.operand(op)])
    return torch.einsum(contraction.equation, *given).flatten(2)


def check_residual(rule, whole, setting, op, parts):
    """The blocks on the diagonal are those of the parts; between parts there is nothing."""
    active = [name for name in setting.active() if setting.batched(name)]
    if rule.residual_of(op) in (ZERO, PIECES) or active != setting.active():
        return
    gradient = torch.randn(SAMPLES, *op.shape("output"), dtype=torch.float64)
    expected = dense(rule.residual_of(op), op, active, gradient)
    found = dense(whole.residual_of(parts), parts, active, gradient.unsqueeze(0))[0]
    ends = [0]
    for name in active:
        for n in range(SAMPLES):
            ends.append(ends[-1] + setting.arguments[name][n].numel())
    # Of several inputs each has its parts side by side.
    places = [[i for k in range(len(active)) for i in range(ends[SAMPLES * k + n], ends[SAMPLES * k + n + 1])]
              for n in range(SAMPLES)]
    for n, mine in enumerate(places):
        for m, theirs in enumerate(places):
            block = found[mine][:, theirs]
            close(block, expected[n] if n == m else torch.zeros_like(block), f"{rule.operations[0]}: parts {n}, {m}")


def dense(residual, op, names, gradient):
    """[N, h, h]."""
    if isinstance(residual, Diagonal):
        return torch.diag_embed(residual.diagonal(op, gradient).flatten(1))
    columns, signs = residual.factor(op, gradient)
    joined = torch.cat([columns[name].flatten(2) for name in names], dim=-1)
    assert joined.shape[1] == residual.count(op)
    signed = joined if signs is None else joined * signs.unsqueeze(-1)
    return torch.einsum("nka,nkb->nab", signed, joined)
