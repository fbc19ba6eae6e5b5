"""Metadata, supported versions and extras; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "hf_lm/__init__.py").read_text())[0]
REPOSITORY = "https://github.com/hf-lm/hf_lm"

# An upper bound stands where a release can change what we rely on without an error: a private part
# (hf_lm/upstream.py names them all) or a file format. The lowest versions of all are tested too:
# constraints-oldest.txt. `python -m tests.support.newest` says whether a bound can be raised.
INSTALL = [
    "torch>=2.10,<3",  # earlier: memory corruption in the weights-only loader, CVE-2026-24747
    "transformers>=5.20.2,<5.25",  # LMTrainer overrides private methods of its Trainer
    "accelerate>=1.15,<1.16",  # earlier: wrong data order after resuming; later: its step counters
    "datasets>=5.2,<5.3",  # blocks are memory-mapped from the Arrow files that map() writes
    "tokenizers>=0.23.3,<0.24",  # tokenizer.json is hashed: a new format is another tokenizer
    "evaluate>=0.4.6",
    "huggingface_hub>=2.4,<2.5",  # the errors and the cache that offline runs depend on
    "safetensors>=0.8",
    "pydantic>=2.12,<3",  # its error types become our messages
    "rich>=14.3",
    "jinja2>=3.1.6",  # the model card; earlier: escapes from the sandbox, CVE-2025-27516
    "matplotlib>=3.10",
    "tensorboard>=2.19",
    "psutil>=6.0",  # memory and cores; accelerate needs it too
    "packaging>=24.0",  # compares versions; transformers needs it too
    "httpx2",  # whose errors huggingface_hub lets through; it needs it too
    "py3langid>=0.4,<0.5",  # hf-lm inspect; another version may name other languages
    "filelock>=3.16",  # one process prepares the data; datasets needs it too
]
# transformers 5.24 refuses a peft below 0.22, which is not released: LoRA keeps 5.23 until then
LORA = ["peft>=0.21,<0.22", "transformers<5.24"]
ONNX = ["onnx>=1.21", "onnxscript>=0.7", "onnxruntime>=1.23.2"]
GGUF = [
    "gguf>=0.19",
    "xllamacpp>=2026.10.11549",
]  # the format; llama.cpp checks the file
DEDUP = ["rensa>=0.5,<0.6"]  # another version may hash in another way
DOCUMENTS = ["markitdown[docx,pdf]>=0.1.9,<0.2"]  # another version may write other text
TEST = [
    "pytest>=9.0",
    "pytest-cov>=7.0",
    "pytest-xdist>=3.8",
    "hypothesis>=6.150",
    "jsonschema>=4.25",
    *LORA,
    *ONNX,
    *GGUF,
    *DEDUP,
    *DOCUMENTS,
]

setup(
    name="hf_lm",
    version=VERSION,
    description="Train or fine-tune a small language model on your own text, from one JSON recipe.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="hf_lm contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=REPOSITORY,
    project_urls={
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Changes": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    keywords=["language model", "GPT-2", "pretraining", "fine-tuning", "LoRA", "Hugging Face"],
    python_requires=">=3.10",
    packages=find_packages(include=["hf_lm", "hf_lm.*"]),
    package_data={
        "hf_lm": ["py.typed"],
        "hf_lm.hub": ["model_card.md.jinja"],
        "hf_lm.recipe": ["recipe.schema.json"],
        "hf_lm.report": ["report.html.jinja"],
    },
    entry_points={"console_scripts": ["hf-lm = hf_lm.cli:main"]},
    install_requires=INSTALL,
    extras_require={
        "lora": LORA,
        "onnx": ONNX,
        "gguf": GGUF,
        "dedup": DEDUP,
        "documents": DOCUMENTS,
        "test": TEST,
        "dev": [
            *TEST,
            "build>=1.3",
            "codespell>=2.4",
            "import-linter>=2.15,<3",
            "pre-commit>=4.5",
            "pre-commit-hooks>=6.0",
            "pyrefly==1.4.1",
            "ruff>=0.17,<0.18",
        ],
    },
)
