"""The service's processes: how they start, serve, drain and stop."""
