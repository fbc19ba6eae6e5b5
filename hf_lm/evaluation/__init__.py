"""Recipe section `evaluation`: metrics on held-out text, and samples."""
