"""The page in a real browser: the checks of scripts/check_page.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import check_page
import pytest
from check_page import CHECKS, Browser

PROGRAM = check_page.chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium: apt install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM
    opened = Browser(PROGRAM, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.mark.parametrize("name", CHECKS)
def test_the_page(browser: Browser, tmp_path: Path, name: str) -> None:
    serving, check = CHECKS[name]
    with serving(tmp_path) as server:
        check(browser, server)
