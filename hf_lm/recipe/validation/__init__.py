"""Rules between keys, and messages with suggestions."""
