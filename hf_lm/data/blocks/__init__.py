"""Turn documents into fixed-length blocks of `block_size + 1` token ids."""
