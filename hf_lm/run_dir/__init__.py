"""The output directory of a run: files, log, lock and provenance."""
