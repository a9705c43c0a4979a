"""Plan, then execute: what a conversion will do, decided and explained before a byte is read."""

from wanconv.plan.build import contents, plan
from wanconv.plan.files import Slot, lay_out
from wanconv.plan.findings import left_out, roles_of, some, without_match
from wanconv.plan.tables import by_component, by_lora, by_rule, conversion_memory
from wanconv.plan.types import Contents, Output, Plan, Step

__all__ = [
    "Contents",
    "Output",
    "Plan",
    "Slot",
    "Step",
    "by_component",
    "by_lora",
    "by_rule",
    "contents",
    "conversion_memory",
    "lay_out",
    "left_out",
    "plan",
    "roles_of",
    "some",
    "without_match",
]
