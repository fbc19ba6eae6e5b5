"""Where text comes from: files, columns, documents and the validation split."""
