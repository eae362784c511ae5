"""Every rule file enrols itself: the cases of each rule and decomposition run through the whole contract."""

import pytest

from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing import check_rule

WRITTEN = {id(made): made for made in builtin().decompositions.values() if made.cases}
RULES = [*{id(rule): rule for _, rule in builtin()}.values(), *WRITTEN.values()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__} {'+'.join(rule.operations)}")
def test_rule_keeps_the_contract(rule):
    check_rule(rule)
