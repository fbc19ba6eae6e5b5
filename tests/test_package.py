"""The package is as it says it is: files, sizes, light imports, a README that works."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lm
from hf_lm.cli import parser

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "hf_lm").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_maps_the_folders_of_the_package() -> None:
    _, _, after = README.partition("```\nhf_lm/\n")
    file_map, _, _ = after.partition("```")
    listed = set(re.findall(r"^  ([a-z_]+)(?:\.py|/)", file_map, re.MULTILINE))
    rooms = {p.stem for p in (ROOT / "hf_lm").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert listed == rooms - {"__init__", "__pycache__"}


def test_no_folder_has_more_than_ten_modules() -> None:
    for folder in {path.parent for path in MODULES}:
        modules = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(modules) <= 10, folder


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_a_screen_and_modules_a_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name
            assert node.returns is not None or node.name == "__init__", node.name


@pytest.mark.parametrize(
    "module", ["hf_lm", "hf_lm.run", "hf_lm.cli", "hf_lm.recipe", "hf_lm.data.text.scan"]
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_version_is_a_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", hf_lm.__version__)


COMMANDS = re.findall(
    r"^ {0,4}(?:\$ )?((?:accelerate launch|hf-lm|python -m hf_lm)[^\n`]*)$", README, re.MULTILINE
)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_parses_and_names_files_that_exist(command: str) -> None:
    words = shlex.split(command.split(" #")[0])
    if words[0] == "hf-lm":
        parser().parse_args(words[1:])
    else:
        at = words.index("hf_lm.run")
        parser().parse_args(["run", *words[at + 1 :]])
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    for word in words:
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file(), word


def test_every_file_the_readme_links_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
