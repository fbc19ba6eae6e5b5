"""The supported versions of setup.py agree with the tested sets in the files of constraints."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LISTS = ("INSTALL", "LORA", "ONNX", "GGUF", "DEDUP", "DOCUMENTS", "TEST")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
BOUNDED = {  # packages whose private parts or file formats the package relies on
    *("accelerate", "datasets", "huggingface-hub", "peft", "tokenizers", "transformers"),
}


def setup_requirements(*names: str) -> list[Requirement]:
    """The requirements in some lists of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    return [
        Requirement(node.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") in names
        for node in getattr(statement.value, "elts", [])
        if isinstance(node, ast.Constant)
    ]


def constraints(name: str, python: str = "3.11") -> dict[str, Requirement]:
    """The lines of a file of constraints that hold for a Python version, by package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line.partition("#")[0]) for line in lines if line[0] != "#"]
    return {
        canonicalize_name(requirement.name): requirement
        for requirement in requirements
        if not requirement.marker or requirement.marker.evaluate({"python_version": python})
    }


def pinned(requirement: Requirement) -> Version:
    """The version of a `name==version` line."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return Version(specifier.version)


def lowest(requirement: Requirement) -> Version | None:
    """The lowest version that a requirement allows."""
    found = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")]
    return max(found, default=None)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_set_is_within_the_supported_versions(python: str) -> None:
    tested = constraints("constraints.txt", python)
    for requirement in setup_requirements(*LISTS):
        version = pinned(tested[canonicalize_name(requirement.name)])
        assert version in requirement.specifier, requirement


def test_the_oldest_set_has_the_lowest_version_of_every_package() -> None:
    oldest = constraints("constraints-oldest.txt")
    for requirement in setup_requirements(*LISTS):
        name = canonicalize_name(requirement.name)
        if name != "torch" and lowest(requirement):  # see the head of that file
            assert pinned(oldest[name]) == lowest(requirement), requirement


def test_every_package_we_reach_into_has_an_upper_bound_and_a_reason() -> None:
    lines = (ROOT / "setup.py").read_text(encoding="utf-8").splitlines()
    for requirement in setup_requirements("INSTALL", "LORA"):
        if canonicalize_name(requirement.name) not in BOUNDED:
            continue
        assert "<" in str(requirement.specifier), requirement
        number, line = next((n, t) for n, t in enumerate(lines) if f'"{requirement.name}>=' in t)
        assert "#" in line or lines[number - 1].startswith("#"), line


def test_lora_keeps_the_transformers_that_its_peft_works_with() -> None:
    requirements = {r.name: r.specifier for r in setup_requirements("LORA")}
    assert "5.24.0" not in requirements["transformers"]
    assert "0.22.0" not in requirements["peft"]


def test_every_supported_python_is_classified() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert tuple(re.findall(r"Python :: (3\.\d+)", text)) == PYTHONS
    assert f'python_requires=">={PYTHONS[0]}"' in text
