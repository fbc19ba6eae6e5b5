"""Metadata, floors and extras; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "hf_lm/__init__.py").read_text())[1]

LORA = ["peft>=0.21"]
ONNX = ["onnx>=1.21", "onnxscript>=0.7", "onnxruntime>=1.24"]
TEST = [
    "pytest>=9.0",
    "pytest-cov>=7.0",
    "pytest-xdist>=3.8",
    "hypothesis>=6.150",
    "jsonschema>=4.25",
    *LORA,
    *ONNX,
]

setup(
    name="hf_lm",
    version=VERSION,
    description="One JSON recipe in; a trained, measured causal language model out.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["hf_lm", "hf_lm.*"]),
    package_data={"hf_lm.hub": ["model_card.md.jinja"], "hf_lm.recipe": ["recipe.schema.json"]},
    entry_points={"console_scripts": ["hf-lm = hf_lm.cli:main"]},
    install_requires=[
        "torch>=2.10",  # earlier: memory corruption in the weights-only loader, CVE-2026-24747
        "transformers>=5.23,<6",
        "accelerate>=1.15",  # earlier: wrong data order when resuming in a later epoch
        "datasets>=5.2",
        "tokenizers>=0.22",
        "evaluate>=0.4.6",
        "huggingface_hub>=2.4",
        "safetensors>=0.8",
        "pydantic>=2.12",
        "rich>=14.0",
        "jinja2>=3.1.6",  # the model card; earlier: escapes from the sandbox, CVE-2025-27516
        "matplotlib>=3.10",
        "tensorboard>=2.19",
        "psutil>=6.0",  # memory and cores; accelerate needs it too
        "httpx2",  # whose errors huggingface_hub lets through; it needs it too
        "filelock>=3.16",  # one process prepares the data; datasets needs it too
    ],
    extras_require={
        "lora": LORA,
        "onnx": ONNX,
        "test": TEST,
        "dev": [
            *TEST,
            "ruff>=0.17,<0.18",
            "pyrefly==1.4.1",
            "import-linter>=2.16,<3",
            "pre-commit>=4.7",
        ],
    },
)
