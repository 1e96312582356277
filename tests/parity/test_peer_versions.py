"""The peers are there: without them the tests beside this one would be skipped in silence."""

from __future__ import annotations

from importlib.metadata import version

import pytest

pytestmark = pytest.mark.parity


def test_mergekit_is_the_version_that_compat_follows() -> None:
    assert version("mergekit") == "0.1.5"
