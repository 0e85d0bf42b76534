"""Writes `docs/tutorial.ipynb` from `docs/tutorial.md`: `python docs/make_notebook.py`.

Input: Markdown with code blocks. Output: a notebook with a cell for each stretch of text and each block of Python.
Other blocks stay text, and cells have no outputs, so that the notebook changes only with the text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def python_blocks(text: str) -> list[str]:
    """Return the Python blocks of a page in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def as_notebook(text: str) -> str:
    """Return a page as the JSON of a notebook."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)):
        lines = part.strip("\n").splitlines(keepends=True)
        if not lines:
            continue
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": lines}
        if number % 2:
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
        else:
            cells.append({"cell_type": "markdown", **cell})
    language = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": language, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write the notebook beside the page."""
    text = (FOLDER / "tutorial.md").read_text(encoding="utf-8")
    (FOLDER / "tutorial.ipynb").write_text(as_notebook(text), encoding="utf-8")


if __name__ == "__main__":
    main()
