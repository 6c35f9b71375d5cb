"""Formats: bytes and texts of requests and responses, read strictly and within bounds (pure)."""
