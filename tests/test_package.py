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
UNCLEAR_MODULES = {  # names of before, which said nothing to somebody new
    *("fit", "use", "guarded", "mishaps", "patient", "foreign", "stopping", "finite", "clock"),
    *("resume", "changes", "run_folder", "machine", "card", "uploads", "options", "launcher"),
    *("ahead", "endless", "readers", "tokens", "completions", "collate", "words", "problems"),
    *("rates", "section", "utils", "helpers"),
}
UNCLEAR_NAMES = {
    *("guarded", "make_harmless", "explained", "noted", "handled", "agree", "settle", "settled"),
    *("take", "own_state", "own_numbers", "Checkpoints", "newest", "set_aside", "clean", "discard"),
    *("offer", "weights_of", "changing", "copied", "placed_like", "random_state", "reading"),
    *("system_errors", "Kinds", "refuse_kinds", "FiniteGuard", "watch", "left_out", "Hooks"),
    *("Clock", "undisturbed", "uncompiled", "RunFolder", "held", "recorded", "claimed", "done"),
    *("facts", "missing_disk", "refuse_changes", "drift", "placeless", "flat", "fresh_path"),
    *("Machine", "find_machine", "holding", "Network", "recompute", "train_once", "MeanLoss"),
    *("use_mean_loss", "use_cheap_dropout", "merged", "grow_embeddings", "blocks_of"),
    *("rate_factor", "build_schedule", "step_matrices", "step_others", "shared_out"),
    *("refuse_access", "retried", "passing", "asked_pause", "published_tree", "published_file"),
    *("PatientStream", "told_of_workers", "told", "raised", "at_once", "settle_offline"),
    *("Text", "Share", "Reader", "part", "Split", "lane", "portion", "Mark", "Placed", "passed"),
    *("read_ahead", "learnt", "survives_cuts", "BlockRows", "Clash", "clashes", "meant", "place"),
    *("start_from", "unusable", "Uploads", "saves", "published", "continue_from", "sealed"),
}
RIDDLES = {"What", "That", "Whether", "As", "Who", "Where", "Whatever", "There", "How"}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_maps_the_folders_of_the_package() -> None:
    _, _, after = README.partition("```\nhf_lm/\n")
    file_map, _, _ = after.partition("```")
    listed = set(re.findall(r"^  ([a-z_]+)(?:\.py|/)", file_map, re.MULTILINE))
    rooms = {p.stem for p in (ROOT / "hf_lm").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert listed == rooms - {"__init__", "__pycache__"}


def definitions(path: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_things_are(path: Path) -> None:
    assert path.stem not in UNCLEAR_MODULES
    assert not {node.name for node in definitions(path)} & UNCLEAR_NAMES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_of_every_docstring_is_a_plain_sentence(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in [tree, *definitions(path)]:
        first_line = (ast.get_docstring(node) or "").partition("\n")[0]
        assert not re.search(r"\bin; .*\bout\.", first_line), first_line
        assert not first_line or first_line[-1] in ".:", first_line
        assert first_line.split(" ")[0] not in RIDDLES, first_line


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
