"""What the tests of commands share."""

import pytest
from process import database_url


@pytest.fixture
def command(tmp_path, database_address):
    """The directory and the database of a command."""
    return {"directory": tmp_path, "DATABASE_URL": database_url(database_address)}
