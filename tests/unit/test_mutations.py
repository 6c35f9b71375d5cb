"""The list of mutations is current; scripts/mutate.sh applies them."""

import re

import pytest
from mutations import MUTATIONS
from process import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_can_be_applied(mutation):
    """A mutation's line occurs once in its file, and the test that must fail exists."""
    path, *_, function = mutation.test.split("::")

    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert re.search(rf"^ *(async )?def {function}\(", (ROOT / path).read_text(), re.MULTILINE)
