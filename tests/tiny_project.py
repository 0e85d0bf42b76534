"""First moment of the tiny tables, and changes of a project's settings file.

Not in a `conftest.py`: there are several, and an import by that name finds whichever was loaded last.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

TINY_START = datetime(2024, 1, 1, tzinfo=UTC)


def change_settings(project: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Put settings over those of a project's file; its comments are lost."""
    file = project / "rec_ray.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    for section, changed in settings.items():
        values[section] = {**values.get(section, {}), **changed}
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
