"""The structured output that the clients ask for."""

import pydantic


class Fox(pydantic.BaseModel):
    """A description of a fox."""

    name: str
    age: int
    friends: list[str]
