"""Install the newest release of every dependency, bounds or not, and say what breaks.

    python -m tests.support.newest [--torch]

For maintainers, before a bound in setup.py is raised. It needs the network and about ten minutes.
The last lines list the packages beyond a bound, what hf_lm/upstream.py misses, and failed tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = ("lora", "onnx", "gguf", "dedup", "test")
MISSING_PARTS = "from hf_lm.upstream import missing_parts; print(*missing_parts(), sep='\\n')"


def requirements() -> dict[str, SpecifierSet]:
    """The supported versions of every requirement of the installed package and its extras."""
    supported: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, requires("hf_lm") or []):
        name = canonicalize_name(requirement.name)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
            supported[name] = supported.get(name, SpecifierSet()) & requirement.specifier
    return supported


def run(*command: str | Path) -> str:
    """Run a command in the root of the repository and return what it prints, failed or not."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def main() -> int:
    """Install, compare and test; return 1 if something breaks."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--torch", action="store_true", help="the newest torch as well: several GB")
    is_torch_new = parser.parse_args().torch
    known = requirements()
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "torch" if is_torch_new else "torch==2.13.0")
        print(run(python, "-m", "pip", "install", "-q", "-U", *(known.keys() - {"torch"})))
        print(run(python, "-m", "pip", "install", "-q", "--no-deps", "-e", "."))
        listed = run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check")
        versions = json.loads(listed.splitlines()[0])
        beyond = [
            f"{package['name']} {package['version']} is beyond {known[name]}"
            for package in versions
            if (name := canonicalize_name(package["name"])) in known
            and package["version"].partition("+")[0] not in known[name]
        ]
        missing = [f"missing: {line}" for line in run(python, "-c", MISSING_PARTS).splitlines()]
        tests = run(python, "-m", "pytest", "-n", "logical", "-q", "-rfE", "--tb=no")
    failed = re.findall(r"^(?:FAILED|ERROR) .*", tests, re.MULTILINE)
    print("\n".join([*beyond, *missing, *failed, tests.strip().rpartition("\n")[2]]))
    return int(bool(missing or failed))


if __name__ == "__main__":
    sys.exit(main())
