"""The processes of the service: how they start, serve, drain and end."""
