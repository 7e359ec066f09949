"""Change the code in one place at a time and see whether a test notices.

    python tests/mutate.py npeff_jax/evaluation npeff_jax/perturbation --tests tests/evaluation tests/perturbation -n 60

Mutants are drawn at random from: comparisons, signs, sums for differences, products for quotients, numbers, truth
values, `and` for `or`, all for any, min for max. Each lives in a copy of the tree and meets, in a forked process, first
the test files that name something of its module, then the rest; the first failure kills it. What survives is printed
as it was and as it was changed, and written as JSON: a missing test, or a change that changes no result. A mutant may
take ``--limit`` seconds, or twice what the tests take without one if that is more: a limit below it would count a slow
machine as a test that noticed. ``--skip`` goes on after so many of the mutants drawn.
"""

import argparse
import ast
import copy
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
PAIRS = [
    ("all", "any"),
    ("min", "max"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("fmin", "fmax"),
    ("cumsum", "cumprod"),
]
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
SHOWN = ("__repr__", "__str__", "_repr_html_")
"""Methods that only show results: what they print is not mutated."""


def places(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that can be mutated: nothing in annotations, decorators, messages of errors or displays."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.FunctionDef) and node.name in SHOWN:
            continue
        if mutated(copy.deepcopy(node)) is not None:
            yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                entries = value if isinstance(value, list) else [value]
                stack += [entry for entry in entries if isinstance(entry, ast.AST)]


def mutated(node: ast.AST) -> ast.AST | None:
    """Return ``node`` changed in place, or what replaces it; None if there is nothing to change."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATIONS:
        node.op = OPERATIONS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        return node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        node.attr = NAMES[node.attr]
    elif isinstance(node, ast.Name) and node.id in NAMES:
        node.id = NAMES[node.id]
    else:
        return None
    return node


class Replace(ast.NodeTransformer):
    """A tree with the mutant of the n-th place in it."""

    def __init__(self, target: ast.AST) -> None:
        self.target = target

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.target:
            return mutated(node) or node
        return self.generic_visit(node)


def mutant(source: str, number: int) -> tuple[str, str, int]:
    """Return the module with its n-th mutation, what was changed, and the line."""
    tree = ast.parse(source)
    target = list(places(tree))[number]
    before, line = ast.unparse(target), target.lineno  # type: ignore[attr-defined]
    return ast.unparse(Replace(target).visit(tree)), before, line


def relevant(module: pathlib.Path, tests: list[pathlib.Path]) -> list[pathlib.Path]:
    """Test files in the order in which they are likely to notice: those that name something of the module first."""
    names = [
        node.name for node in ast.parse(module.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    text = {test: test.read_text() for test in tests}
    score = {test: sum(content.count(name) for name in names) for test, content in text.items()}
    return sorted(tests, key=lambda test: -score[test])


def survives(tree: pathlib.Path, tests: list[str], limit: int) -> tuple[bool, float]:
    """Whether all tests pass, in a process of their own, and how long they took. Too long counts as noticed."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        said = os.open(tree / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        signal.alarm(limit)
        import pytest

        try:
            code = int(pytest.main(["-n0", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # never through the parent's clean-up
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="+", type=pathlib.Path, help="folders or files to mutate")
    parser.add_argument("--tests", nargs="+", type=pathlib.Path, required=True, help="folders or files of tests")
    parser.add_argument("-n", "--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="of the mutants drawn, those that were tried before")
    parser.add_argument("--limit", type=int, default=300, help="seconds a mutant may take")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutants.json"))
    options = parser.parse_args()

    root = pathlib.Path(__file__).resolve().parent.parent
    modules = [file for room in options.rooms for file in ([room] if room.is_file() else sorted(room.rglob("*.py")))]
    tests = [file for room in options.tests for file in ([room] if room.is_file() else sorted(room.rglob("test_*.py")))]
    every = [(module, i) for module in modules for i in range(len(list(places(ast.parse(module.read_text())))))]
    drawn = random.Random(options.seed).sample(every, min(options.number, len(every)))
    print(f"{len(every)} places in {len(modules)} files; {len(drawn)} drawn with seed {options.seed}", flush=True)

    # What takes long to import, once for all; no device is touched before the fork.
    import jax  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.cluster  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        for part in ("npeff_jax", "tests"):
            shutil.copytree(root / part, tree / part)
        shutil.copy(root / "pyproject.toml", tree)
        whole, seconds = survives(tree, [str(test) for test in tests], 10 * options.limit)
        if not whole:
            raise SystemExit("the tests fail without any mutation:\n" + (tree / "said.txt").read_text()[-2000:])
        limit = max(options.limit, int(2 * seconds))
        print(f"without a mutation: {seconds:.0f} s; a mutant may take {limit} s", flush=True)
        results = []
        for module, number in drawn[options.skip :]:
            source = (tree / module).read_text()
            changed, before, line = mutant(source, number)
            (tree / module).write_text(changed)
            stamp = time.time() + len(results) + 10  # never the time stamp of a compiled file
            os.utime(tree / module, (stamp, stamp))
            alive, seconds = survives(tree, [str(test) for test in relevant(module, tests)], limit)
            (tree / module).write_text(source)
            os.utime(tree / module, (stamp + 0.5, stamp + 0.5))
            results.append({"file": str(module), "line": line, "was": before, "number": number, "survived": alive})
            print(f"{'ALIVE ' if alive else 'killed'} {module}:{line} {before!r} ({seconds:.0f} s)", flush=True)
            options.out.write_text(json.dumps(results, indent=1))
    killed = sum(not result["survived"] for result in results)
    print(f"score: {killed} of {len(results)} noticed")


if __name__ == "__main__":
    main()
