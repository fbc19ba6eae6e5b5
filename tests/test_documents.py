"""The documents are true: commands parse, links resolve, examples load, the notebook runs."""

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_lm
from hf_lm.cli import parser
from hf_lm.recipe import Recipe, load_recipe, make_recipe

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", ROOT / "recipes/README.md"]
NOTEBOOK = ROOT / "docs/example.ipynb"
RELIABILITY = ROOT / "docs/reliability.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
KEY = re.compile(r"(?:data|tokenizer|model|training|evaluation|hub)\.[a-z_.]+[a-z]")
OURS = re.compile(r"^(?:\$ )?((?:accelerate launch|hf-lm|python -m hf_lm)\b.*)$", re.MULTILINE)
# Named on a page, and no recipe keys.
MODULES = {"evaluation.metrics", "tokenizer.py", "model.gguf"}

# Folders that the commands take for granted: of an earlier run, or of a user.
FOLDERS = ("runs/small/model", "runs/instruct/model", "my_texts", "prepared")


def make_folders(path: Path) -> None:
    for name in FOLDERS:
        (path / name).mkdir(parents=True)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; "" for those that name none."""
    return [text for name, text in FENCE.findall(path.read_text("utf-8")) if name == language]


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", path.read_text("utf-8"))


def cases(language: str) -> list[Any]:
    """Every code block of a language, as parameters of a test."""
    return [
        pytest.param(path, text, id=f"{relative(path)}-{number}")
        for path in PAGES
        for number, text in enumerate(blocks(path, language))
    ]


COMMANDS = sorted(
    {
        command
        for path in PAGES
        for text in blocks(path, "")
        for command in OURS.findall(text.replace("\\\n", " "))
    }
)


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_and_its_recipe_loads(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    for word in words:
        if word.startswith("recipes/"):
            assert (ROOT / word).is_file(), word
    if words[0] == "hf-lm":
        options = parser().parse_args(words[1:])
    else:
        options = parser().parse_args(["run", *words[words.index("hf_lm.run") + 1 :]])
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    recipe = getattr(options, "recipe", "")
    if recipe.startswith("recipes/"):
        make_folders(tmp_path)
        monkeypatch.chdir(tmp_path)
        pretrained = getattr(options, "pretrained", None)
        load_recipe(ROOT / recipe, overrides=options.overrides, pretrained=pretrained)


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_sub_command_in_prose_exists(path: Path) -> None:
    for span in SPAN.findall(prose(path)):
        if span.startswith("hf-lm "):
            action = next(a for a in parser()._actions if a.dest == "command")
            assert span.split()[1] in (action.choices or ()), span


def extras(word: str) -> set[str]:
    """The extras of `.[a,b]`."""
    found = re.search(r"\[([a-z,]+)\]", word)
    return {*found[1].split(",")} if found else set()


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_install_and_test_command_names_what_exists(path: Path) -> None:
    known = (ROOT / "setup.py").read_text("utf-8")
    text = path.read_text("utf-8")
    for command in re.findall(r"pip install[^\n`&]*-e[^\n`&]*", text):
        words = shlex.split(command)
        assert (ROOT / words[words.index("-c") + 1]).is_file(), command
        for extra in extras(words[-1]):
            assert f'"{extra}":' in known, command
    for name in re.findall(
        r"(?:pytest|python|bash) (?:[^\n`]* )?((?:tests|benchmarks|\.ci)/[^\s`]+)", text
    ):
        assert (ROOT / name).exists(), name


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#{1,6} (.+)$", prose(path), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("path", [*LINKED, NOTEBOOK], ids=relative)
def test_every_link_and_anchor_resolves(path: Path) -> None:
    for target in LINK.findall(SPAN.sub("", prose(path))):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in slugs(file), target


def as_object(text: str) -> dict[str, Any]:
    """A JSON object, or the members of one."""
    text = text.strip()
    raw = json.loads(text if text.startswith("{") else f"{{{text}}}")
    return raw if raw.keys() <= fields(Recipe) else {"data": raw}


def fields(section: type[Any]) -> set[str]:
    return {field.alias or name for name, field in section.model_fields.items()}


@pytest.mark.parametrize(("path", "text"), cases("json"))
def test_every_json_block_is_a_recipe_or_part_of_one(path: Path, text: str, tmp_path: Path) -> None:
    raw = as_object(text)
    Recipe.model_validate_json(json.dumps(raw))
    make_folders(tmp_path)
    if {"data", "training"} <= raw.keys():
        make_recipe(raw, tmp_path, name=path.name)


def test_the_recipe_that_is_shown_whole_is_the_shipped_one() -> None:
    shown = [json.loads(text) for text in blocks(ROOT / "docs/recipes-by-example.md", "json")[:2]]
    assert shown[1] == json.loads((ROOT / "recipes/small.json").read_text("utf-8"))


def section_of(annotation: Any) -> type[Any] | None:
    """The section that an annotation such as `LoraRecipe | None` stands for."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((option for option in options if hasattr(option, "model_fields")), None)


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_every_recipe_key_in_prose_exists(path: Path) -> None:
    for key in SPAN.findall(prose(path)):
        if not KEY.fullmatch(key) or key in MODULES:
            continue
        section: Any = Recipe
        for name in key.split("."):
            assert name in getattr(section, "model_fields", ()), key
            section = section_of(section.model_fields[name].annotation)


@pytest.mark.parametrize(("path", "text"), cases("python"))
def test_every_python_block_compiles(path: Path, text: str) -> None:
    compile(text, str(path), "exec")


FUNCTIONS = ("load_recipe", "check", "train", "evaluate", "generate", "export", "publish")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_documented_signature_is_that_of_the_function(name: str) -> None:
    text = (ROOT / "docs/python.md").read_text("utf-8")
    found = re.search(rf"`({name}\([^`]*\)) -> [\w\[\] |]+`", text)
    assert found, name
    function = ast.parse(f"def {found[1]}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    actual = inspect.signature(getattr(hf_lm, name)).parameters
    assert [a.arg for a in (*arguments.args, *arguments.kwonlyargs)] == [*actual]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        assert default is not None
        assert actual[argument.arg].default == ast.literal_eval(default), argument.arg


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 200


def test_the_readme_links_every_page() -> None:
    linked = {*LINK.findall(README.read_text("utf-8"))}
    assert {relative(path) for path in [*DOCS, NOTEBOOK]} <= linked


def promises_of_tests() -> Iterator[str]:
    """Every row that a test names in its marker."""
    for path in (ROOT / "tests").rglob("*.py"):
        if path == Path(__file__):
            continue
        for rows in re.findall(r"mark\.promise\(([^)]*)\)", path.read_text("utf-8")):
            yield from re.findall(r'"(\w+)"', rows)


def test_every_row_that_a_test_holds_stands_on_the_page() -> None:
    rows = re.findall(r"^\| ([PST]?\d+) \|", RELIABILITY.read_text("utf-8"), re.MULTILINE)
    counts = {"P": 14, "": 118, "S": 22, "T": 16}
    assert rows == [f"{kind}{n}" for kind, last in counts.items() for n in range(1, last + 1)]
    assert {*promises_of_tests()} <= {*rows}


RUN_CELLS = """
import json, sys
space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
"""


def test_the_notebook_is_plain() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len({*ids}) == len(ids)
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), cell["id"]
        assert cell.get("execution_count") is None, cell["id"]


def test_the_notebook_runs_without_a_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, str(NOTEBOOK)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bits_per_byte" in done.stdout
    assert "\r" not in done.stdout
