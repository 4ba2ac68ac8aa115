"""Measurements of this package and of its peers, one file a subject (docs/benchmarks.md)."""
