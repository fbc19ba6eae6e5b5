"""Recipe section `data`: text, documents, blocks of token ids, batches."""
