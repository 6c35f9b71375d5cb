"""The endpoints that play a text model: chat completions and responses.

``markers`` and ``script`` read what a message asks the sandbox to do, ``answers`` plans the answer,
and the other modules send it in the format of their endpoint.
"""
