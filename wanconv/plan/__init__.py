"""Plan, then execute: what a conversion will do, decided and explained before a byte is read."""

from wanconv.plan.build import contents, plan
from wanconv.plan.files import Slot, lay_out
from wanconv.plan.findings import dead_of, left_out, roles_of, some, without_match
from wanconv.plan.marks import (
    family_in_words,
    marks_of,
    notes_of,
    release_in_words,
    says,
    unread_mark,
    unreadable_config,
)
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
    "dead_of",
    "family_in_words",
    "lay_out",
    "left_out",
    "marks_of",
    "notes_of",
    "plan",
    "release_in_words",
    "roles_of",
    "says",
    "some",
    "unread_mark",
    "unreadable_config",
    "without_match",
]
