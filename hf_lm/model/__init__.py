"""Recipe section `model`: a stock transformers model, built or loaded."""
