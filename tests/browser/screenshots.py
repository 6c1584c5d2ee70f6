"""Screenshots of the HTML report for the README: `make screenshots` writes docs/images/*.png from the kept traces."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.report.html.page import HtmlRenderer
from nanhunt.trace.reader import Trace
from tests.browser.chromium import Chromium, find_chromium, running
from tests.browser.kept import trace_of

FOLDER = Path(__file__).parents[2] / "docs" / "images"


def page(fault: str, folder: Path) -> Path:
    """Write the report of a kept trace."""
    to = folder / f"{fault}.html"
    to.write_text(HtmlRenderer().render(diagnose(Trace.open(trace_of(fault)))), encoding="utf-8")
    return to


def shoot(browser: Chromium, name: str, *, height: int, top: int = 0) -> None:
    """Write a part of what is open, and say how large it is."""
    to = FOLDER / f"{name}.png"
    browser.screenshot(to, height=height, top=top)
    print(f"{to}: {to.stat().st_size:,} bytes")


def main() -> None:
    """Write every screenshot; exit 2 without a Chromium."""
    path = find_chromium()
    if path is None:
        sys.exit("there is no Chromium: `make browser` installs Debian's")
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder, running(path) as browser:
        overflow, spike = page("fp16-overflow", Path(folder)), page("lr-spike", Path(folder))
        for dark in (False, True):
            browser.open(overflow, dark=dark)
            shoot(browser, "report-dark" if dark else "report-light", height=830)
        browser.open(spike)
        top = browser.evaluate("document.getElementById('map').getBoundingClientRect().top + scrollY")
        shoot(browser, "heat-map", height=1000, top=int(top))


if __name__ == "__main__":
    main()
