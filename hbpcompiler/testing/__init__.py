"""The contract of a rule, as a test of one line: `check_rule(my_rule)`."""

from hbpcompiler.testing.contract import check_case, check_loss_case, check_rule

__all__ = ["check_case", "check_loss_case", "check_rule"]
