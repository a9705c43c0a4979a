"""A plan in numbers: bytes by component and by rule, and the memory to load the result."""

from wanconv.containers.writer import BLOCK_NBYTES
from wanconv.planning.types import Plan, Step
from wanconv.report import Cell, Table

_INTERPRETER_NBYTES = 190 << 20  # anonymous memory of Python with torch imported, measured
_SCRATCH_NBYTES = 16 << 20  # per worker: a run of source bytes and the caster's own
_MERGING_NBYTES = 16 << 20  # per worker: a run of sums in float64, a tile of a down matrix


def conversion_memory(plan: Plan, jobs: int) -> int:
    """Returns the anonymous memory of a conversion in bytes: blocks in flight, for any size of model, and with LoRAs
    also one tensor's down matrices per worker."""
    held = [
        sum(patch.down.nbytes for patch in step.tensor.patches if patch.up)
        for step in plan.steps
        if step.tensor.patches
    ]
    merging = max(held) + _MERGING_NBYTES if held else 0
    return _INTERPRETER_NBYTES + jobs * (2 * BLOCK_NBYTES + _SCRATCH_NBYTES + merging)


def by_component(plan: Plan) -> Table:
    """Bytes before and after, and the memory to load the result: whole (resident), or block by block (streamed).

    Streamed is everything outside the blocks plus two blocks: one computes while the next one arrives.
    """
    rows: list[tuple[object, ...]] = []
    sums = [0, 0, 0]
    for component in plan.model.components.values():
        steps = [step for step in plan.steps if step.tensor.name in component.tensors]
        blocks: dict[int, int] = {}
        outside = 0
        for step in steps:
            if step.tensor.block is None:
                outside += step.nbytes
            else:
                blocks[step.tensor.block] = blocks.get(step.tensor.block, 0) + step.nbytes
        after = sum(step.nbytes for step in steps)
        streamed = min(after, outside + 2 * max(blocks.values(), default=0))
        before = sum(tensor.nbytes for tensor in component.tensors.values())
        rows.append((component.name, component.architecture.name, len(steps), before, after, after, streamed))
        sums = [one + more for one, more in zip(sums, (len(steps), before, after), strict=True)]
    rows.append(("total", "", *sums, Cell(None, ""), Cell(None, "")))
    columns = (
        "component",
        "architecture",
        "tensors",
        "before_nbytes",
        "after_nbytes",
        "resident_nbytes",
        "streamed_nbytes",
    )
    return Table("components", columns, tuple(rows))


def by_lora(plan: Plan) -> tuple[Table, ...]:
    """The component and the effect of each LoRA; no table if there is none."""
    rows = tuple(
        (lora.file.name, lora.component, lora.changed, _ranks(lora.ranks), lora.strength, lora.sha256)
        for lora in plan.model.loras
    )
    return (Table("loras", ("lora", "component", "tensors", "rank", "strength", "sha256"), rows),) if rows else ()


def _ranks(ranks: tuple[int, ...]) -> str:
    if not ranks:
        return "differences"
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def by_rule(plan: Plan) -> Table:
    """The number of tensors of each rule, and the formats they are stored in."""
    groups: dict[tuple[int, str, str], list[Step]] = {}
    for step in plan.steps:
        groups.setdefault((step.rule, step.label, step.tensor.stored_as), []).append(step)
    rows = []
    for (rule, name, source), steps in sorted(groups.items(), key=lambda group: group[0]):
        rows.append(
            (
                rule + 1,
                str(plan.recipe.rules[rule]),
                source,
                name if name != "keep" else f"keep ({steps[0].dtype})",
                len(steps),
                sum(step.tensor.nbytes for step in steps),
                sum(step.nbytes for step in steps),
            )
        )
    columns = ("rule", "match", "from", "format", "tensors", "before_nbytes", "after_nbytes")
    return Table("rules", columns, tuple(rows))
