"""Measures Rialto beside other gateways and proxies. See docs/benchmarks.md."""
