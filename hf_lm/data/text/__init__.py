"""The sources of text: files, columns, documents and the validation set."""
