"""Docstrings open with a noun or a verb: `python tests/plain_english.py` lists those that open with a clause.

`make check` runs it and `test_architecture` tests it; it needs nothing but Python.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("rec_ray", "jobs")
CLAUSE = re.compile(r"(What|Who|Whom|Whose|Whether|That|Where|How (far|long|often|many|much))\b")
NOT_YET_REWRITTEN: frozenset[str] = frozenset()
"""Paths from the root that are exempt; a new module never is."""


def find_clauses(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and first line of every docstring that opens with a clause, those of variables and fields included."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str) and CLAUSE.match(text.strip()):
                    yield statement.lineno, text.strip().splitlines()[0]


def main() -> int:
    """Print the offenders as `path:line: docstring`; return 1 if there are any."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    found = [
        f"{path}:{line}: {text}"
        for file in files
        if (path := str(file.relative_to(ROOT))) not in NOT_YET_REWRITTEN
        for line, text in find_clauses(file.read_text(encoding="utf-8"))
    ]
    for offender in found:
        print(offender)
    if found:
        print(f"{len(found)} docstring(s) open with a clause; open with the noun that is meant, or with a verb")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
