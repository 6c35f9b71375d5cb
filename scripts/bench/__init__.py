"""Measures Rialto beside what stands in front of a model otherwise. See docs/benchmarks.md."""
