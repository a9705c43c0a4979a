"""Mutations of the package's lines, by which tests are measured: see scripts/mutants."""

import ast
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

_OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Add, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change to one file: of the bytes from `first` to `end`."""

    file: str
    line: int
    first: int
    end: int
    new: str
    what: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def room(self) -> str:
        """The folder of tests that belong to the module."""
        parts = Path(self.file).with_suffix("").parts
        return f"tests/{parts[1]}"

    @property
    def key(self) -> str:
        return sha256(f"{self.file}:{self.line}:{self.what}".encode()).hexdigest()[:16]

    def apply(self, root: Path) -> Callable[[], object]:
        """Breaks the file, which it writes anew: a copy may be hard links. Returns what makes it whole again."""
        path = root / self.file
        before, aside = path.read_bytes(), path.with_suffix(".whole")
        path.rename(aside)
        path.write_bytes(before[: self.first] + self.new.encode() + before[self.end :])
        return lambda: aside.replace(path)  # with its old time, by which what is compiled of it is known


def drawn(root: Path, count: int, seed: int) -> list[Mutation]:
    """Returns mutations of lines that are drawn without putting back, one for each line."""
    lines: dict[tuple[str, int], list[Mutation]] = {}
    for path in sorted((root / "wanconv").rglob("*.py")):
        for mutation in mutations(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")):
            lines.setdefault((mutation.file, mutation.line), []).append(mutation)
    choose = random.Random(seed)
    return [choose.choice(lines[line]) for line in choose.sample(sorted(lines), count)]


def mutations(file: str, text: str) -> Iterator[Mutation]:
    """Yields every mutation of a module's executable statements."""
    tree = ast.parse(text)
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    left_out = _left_out(tree)
    for node in ast.walk(tree):
        if node in left_out:
            continue
        for new, what in _changes(node):
            assert isinstance(node, ast.expr | ast.stmt)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            first, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            yield Mutation(file, node.lineno, first, end, new, what)


def _left_out(tree: ast.Module) -> set[ast.AST]:
    """Returns what does not run, such as docstrings and annotations, and what f-strings hold, whose places Python 3.11
    does not know."""
    out: set[ast.AST] = set()
    for node in ast.walk(tree):
        roots: list[ast.AST | None] = []
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            roots.append(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            roots += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.JoinedStr):
            roots += node.values
        elif isinstance(node, ast.If | ast.Assign):
            said = node.test if isinstance(node, ast.If) else node.targets[0]
            roots.append(node if isinstance(said, ast.Name) and said.id in ("TYPE_CHECKING", "__all__") else None)
        for root in roots:
            if root is not None:
                out |= set(ast.walk(root))
    return out


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields the new text of a node, and what was done to it."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
        other = ast.Compare(node.left, [_other(node.ops[0]), *node.ops[1:]], node.comparators)
        yield f"({ast.unparse(other)})", "comparison turned"
    elif isinstance(node, ast.BoolOp):
        yield f"({ast.unparse(ast.BoolOp(_other(node.op), node.values))})", "and/or"
    elif isinstance(node, ast.BinOp) and type(node.op) in _OTHER:
        yield f"({ast.unparse(ast.BinOp(node.left, _other(node.op), node.right))})", "other operator"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"({ast.unparse(node.operand)})", "not left out"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value), "True/False"
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"({node.value!r} + 1)", "number + 1"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield repr(node.value + "~"), "other text"
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "return None", "returns None"
    elif isinstance(node, ast.Raise | ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield)
    ):
        yield "pass", "statement left out"
    elif isinstance(node, ast.Break):
        yield "continue", "break/continue"
    elif isinstance(node, ast.Continue):
        yield "break", "break/continue"


def _other(operator: ast.AST) -> Any:
    """Returns what stands in for a comparison, a boolean or an operator, which is one of its kind."""
    return _OTHER[type(operator)]()


def refreshed(root: Path, copy: Path) -> None:
    """Makes the copy what the tree is now: what git knows or would add."""
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_symlink() or (root / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name, follow_symlinks=False)
