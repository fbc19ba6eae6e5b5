"""The package is as it says it is: files, sizes and light imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_lm

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
            # the docstring of a public function is a page of the manual, not code to follow
            manual = (ast.get_docstring(node) or "").count("\n")
            assert node.end_lineno - node.lineno - manual < 50, node.name
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
