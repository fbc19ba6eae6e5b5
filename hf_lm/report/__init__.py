"""The page that shows how a run went: curves, samples, recipe and provenance."""
