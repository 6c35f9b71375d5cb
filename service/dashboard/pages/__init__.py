"""The pages, one module each. A handler gets a :class:`Page` and returns a response."""
