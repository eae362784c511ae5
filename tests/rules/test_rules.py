"""Every rule file enrols itself: each rule's cases run through the whole contract."""

import pytest

from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing import check_rule

RULES = {id(rule): rule for _, rule in builtin()}.values()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule.operations))
def test_rule_keeps_the_contract(rule):
    check_rule(rule)
