"""Logs and metrics, and the files that metrics of several processes are kept in."""
