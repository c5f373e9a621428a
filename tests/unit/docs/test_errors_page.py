"""docs/operations.md tells of every reason that the program gives for an error, and of none that it does not."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from stoker_common.refusal import Code

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("router", "model_server", "stoker_common", "stoker_client")
WORD = re.compile(r"\b[A-Z]+(?:_[A-Z]+)*\b")


def words(node: ast.AST) -> set[str]:
    """The reasons that an expression may be."""
    told = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))
    return {each for each in told if WORD.fullmatch(each)}


def raised(tree: ast.AST) -> Iterator[str]:
    """Reasons given by name, as a default, as a helper's first argument, in a table of reasons."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (word for keyword in node.keywords if keyword.arg == "reason" for word in words(keyword.value))
            if isinstance(node.func, ast.Name) and node.func.id == "_denied":
                yield from words(node.args[0])
        elif isinstance(node, ast.FunctionDef):
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                if argument.arg == "reason" and default is not None:
                    yield from words(default)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "_REASONS":
                yield from words(node.value)


def test_the_page_names_the_reasons_that_there_are() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    given = {reason for path in files for reason in raised(ast.parse(path.read_text()))}
    page = (ROOT / "docs/operations.md").read_text()
    errors = page.split("## What the errors mean")[1].split("\n## ")[0]
    firsts = [line.split("|")[1] for line in errors.splitlines() if line.startswith("| ")]
    told = {word for first in firsts for word in WORD.findall(first)}
    statuses = {code.name for code in Code}
    assert sorted(given - statuses - told) == [], "not on the page"
    assert sorted(told - statuses - given) == [], "on the page, and given by nobody"
