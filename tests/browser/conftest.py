"""The browser that the tests of this folder look through; without one they are skipped, and say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.chromium import Chromium, find_chromium, running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    found = find_chromium()
    if found is None:
        pytest.skip("there is no Chromium; `make browser` installs Debian's")
    with running(found) as browser:
        yield browser
