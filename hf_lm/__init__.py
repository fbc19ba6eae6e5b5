"""hf_lm: train or fine-tune a causal language model from one JSON recipe."""

__version__ = "0.1.0"
