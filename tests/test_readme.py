"""README.md is true: its commands run, its tables are complete, its files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rec_ray.config import Settings
from rec_ray.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Return the `rec-ray` commands of the code blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("rec-ray ")]


def test_it_is_short_and_has_no_open_ends() -> None:
    assert len(README.splitlines()) < 200
    assert "@@" not in README and "TODO" not in README


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_every_section_of_the_settings_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", README, re.M))
    assert explained == set(Settings.model_fields)


def test_every_exit_code_is_explained() -> None:
    explained = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.M) for code in row.split(",")}
    assert set(EXIT_CODES) - {1} <= explained


def test_every_room_is_in_the_file_tree_and_in_the_table_of_the_architecture() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = architecture[architecture.index("## Files") :]
    package = ROOT / "rec_ray"
    rooms = {path.parent for path in package.rglob("*.py")} - {package, package / "retrieval"}
    top = {room.relative_to(package).parts for room in rooms}
    assert {folder for folder in top if len(folder) == 1}, "there are rooms"
    for parts in top:
        if parts[0] == "retrieval" or len(parts) == 1:
            assert re.search(rf"\b{parts[-1]}/", tree), parts
            assert f"`{parts[-1]}/`" in architecture, parts
    for path in [*package.glob("*.py"), *(package / "retrieval").glob("*.py")]:
        assert path.name == "__init__.py" or path.name in tree, path
    for folder, file in re.findall(r"^\| `(\w+)/` \|.*\| `([\w/]+\.py)` \|$", architecture, re.M):
        assert (package / folder / file).is_file(), (folder, file)


@pytest.mark.usefixtures("processes")
def test_its_commands_run(tmp_path: Path, tiny_project: Path) -> None:
    """On the tables that the small project was made from; USER_ID and ITEM_ID are of those."""
    own = tiny_project.parent / "own"
    stand_ins = {"shop": str(tmp_path / "shop"), "FOLDER": str(own), "USER_ID": "u7", "ITEM_ID": "i7"}
    found = commands()
    assert [command.split()[1] for command in found] == [
        *("init", "run", "recommend", "similar", "versions"),
        *("init", "run"),
    ]
    # The project is that of the second block, from own data; `make demo` makes the sample shop.
    for command in [*found[5:], *found[2:5]]:
        words = [stand_ins.get(word, word) for word in command.split()[1:]]
        if words[0] == "run":
            words += ["--set", "train.epochs=1", "--set", "model.history=mean"]
        done = subprocess.run(
            [sys.executable, "-m", "rec_ray.cli", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
        if words[0] in ("recommend", "similar"):
            assert "product" in done.stdout
