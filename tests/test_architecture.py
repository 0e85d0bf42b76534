"""The rules of the layout that no linter knows: floors, sizes, names, docstrings, and who reads the environment."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from plain_english import find_clauses

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "rec_ray").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
LONGEST = 400

names = [str(path.relative_to(ROOT / "rec_ray")) for path in MODULES]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.usefixtures("processes")
def test_imports_go_downwards_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


def test_there_are_modules() -> None:
    assert {"cli/main.py", "config/loading.py", "pipeline.py", "retrieval/learning/learner.py"} <= set(names)
    assert len(JOBS) >= 5


@pytest.mark.parametrize("name", names)
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    lines = lines_of(ROOT / "rec_ray" / name)
    assert lines <= LONGEST, f"{name} has {lines} lines: take a part out that has a name of its own"


@pytest.mark.parametrize("name", [name for name in names if not name.endswith("__init__.py")])
def test_a_module_begins_with_what_it_does_and_what_it_does_not_know(name: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "rec_ray" / name).read_text(encoding="utf-8"))) or ""
    sentences = re.findall(r"[.:](?=\s|$)", docstring)
    assert len(sentences) >= 2, f"{name} says too little: what comes in, what goes out, what it does not know"


def reads_environment(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return bool({"environ", "getenv", "environb"} & (used | imported))


def test_only_the_settings_and_the_command_line_read_the_environment() -> None:
    assert {str(p.relative_to(ROOT)) for p in [*MODULES, *JOBS] if reads_environment(p)} <= {
        "rec_ray/config/loading.py",
        "rec_ray/cli/main.py",
        "rec_ray/distributed/runtime.py",  # sets the token of a local Ray, which Ray reads there
        "rec_ray/training/trainer.py",  # sets what Ray Train reads there and nowhere else
        "rec_ray/training/tune.py",  # the same for Ray Tune
    }
    assert reads_environment(ROOT / "rec_ray" / "config" / "loading.py")


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = re.compile(r"(utils?|common|helpers?|misc|manager|handler|base|core)\b")
    named = [*names, *(path.name for path in JOBS)]
    assert not [name for name in named if empty.match(Path(name).stem) or empty.search(str(Path(name).parent))]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_is_a_thin_script(path: Path) -> None:
    if path.name in ("submit.py", "create_rayjob.py"):
        assert lines_of(path) <= 150
    else:
        assert lines_of(path) <= 40


@pytest.mark.usefixtures("processes")
def test_a_serving_backend_can_load_a_model_without_ray_feast_or_settings() -> None:
    inside = [path.relative_to(ROOT).with_suffix("") for path in MODULES if "retrieval" in path.parts]
    modules = ", ".join(".".join(path.parts).removesuffix(".__init__") for path in inside)
    heavy = "{'ray', 'feast', 's3fs', 'sqlalchemy', 'pydantic', 'duckdb', 'rec_ray.config'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_sql_is_made_of_no_values() -> None:
    """A statement with a placeholder of Python in it could hold somebody's input; the names of our tables do not.

    `pgvector` changes tables of Feast, whose names cannot be parameters either: it quotes them.
    """
    placeholders = {
        ast.unparse(part.value)
        for path in MODULES
        if path.name != "pgvector.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func).endswith(("sa.text", ".exec_driver_sql"))
        for part in ast.walk(node)
        if isinstance(part, ast.FormattedValue)
    }
    assert placeholders <= {"table.name", "definition"}


def test_docstrings_that_open_with_a_clause_are_found_wherever_they_stand() -> None:
    source = '''"""What a module does."""
LIMIT = 3
"""How far it goes."""
class A:
    """Who made it."""
    x: int = 0
    """Where it is: in a field."""
    def f(self):
        """Whether it is."""
    async def g(self):
        """
        That which it is.
        """
def good():
    """Whatever matches is returned, whether or not what is left is less."""
    "What is no docstring of its own" + ""
    return "What a value is"
'''
    assert [line for line, _ in sorted(find_clauses(source))] == [1, 3, 5, 7, 9, 11]


def test_the_package_is_typed_and_licensed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert (ROOT / "rec_ray" / "py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["rec_ray"]
    license_text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert project["project"]["license"] == "Apache-2.0" and "Apache License" in license_text.splitlines()[0]


def test_every_stored_format_has_its_version_in_the_changelog() -> None:
    constants = [
        str(statement.value.value)
        for path in MODULES
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and any(isinstance(name, ast.Name) and name.id == "FORMAT_VERSION" for name in statement.targets)
    ]
    migrations = re.findall(r"m(\d{4})_", " ".join(names))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    formats = changelog[changelog.index("## Formats") :]
    rows = re.findall(r"^\| [^|]+ \| (\d+) \|", formats, re.M)
    assert sorted(rows) == sorted([*constants, max(migrations)])


def test_pre_commit_runs_the_parts_of_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe is not None
    parts = [line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in recipe[1].splitlines()]
    assert [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks] == parts
