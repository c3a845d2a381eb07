"""What tests of the universe share: patterns that are read, and rewritten by none."""

import pytest

from tests.universe import made


@pytest.fixture(scope="session")
def shared_patterns(tmp_path_factory):
    """Of `made.MODELS`, in their order."""
    return made.patterns(tmp_path_factory.mktemp("patterns"))
