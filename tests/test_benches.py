"""Benches are not run by the tests: every name that one imports from the program exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

BENCHES = [path for path in sorted(Path(__file__).parent.glob("bench_*.py")) if "from rec_ray" in path.read_text()]


@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.stem)
def test_a_bench_imports_names_that_exist(bench: Path) -> None:
    tree = ast.parse(bench.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    of_program = [node for node in imports if node.module and node.module.startswith("rec_ray")]
    missing = [
        f"{node.module}.{name.name}"
        for node in of_program
        for name in node.names
        if not hasattr(importlib.import_module(str(node.module)), name.name)
    ]
    assert not missing
