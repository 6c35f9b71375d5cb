"""Logs, metrics, and the files in which several processes keep their metrics."""
