"""Documents become fixed-length blocks of `block_size + 1` token ids."""
