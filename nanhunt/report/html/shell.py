"""A page of one file: its head, its policy, its style and script, and the data that the script draws.

Its policy, `default-src 'none'`, allows by hash the one style and the one script that were written into it: markup which
got out of a name could run no script, and load no image, font, frame or other resource. No policy governs that such
markup leads elsewhere (a link, a `meta` refresh) or opens a connection ahead (`link rel=preconnect`, `dns-prefetch`);
that it cannot get out is `element`'s part.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from nanhunt.report.html.element import Markup, tag

__all__ = ["data_block", "noscript", "shell"]


def shell(title: str, main: Markup, *data: Markup, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Return the page; `styles` and `scripts` are files of this package, each script's names its own but for those in `nh`."""
    style, script = _joined(tuple(styles)), _joined(tuple(scripts))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("title", f"{title} · nanhunt"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("style", Markup(style)),
    )
    return f"<!doctype html>{tag('html', head, tag('body', main, *data, tag('script', Markup(script))), lang='en')}\n"


def data_block(name: str, body: dict[str, Any]) -> Markup:
    """Return JSON for the page's script, harmless inside its element."""
    # in a script element only "<" means anything: "</script" ends it, "<!--" hides its end
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", id=name)


def noscript() -> Markup:
    """Return what stands in the place of a drawing where scripts are off."""
    return tag(
        "noscript", tag("p", "This is drawn by the page's own script, which is switched off here.", class_="note")
    )


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _joined(names: tuple[str, ...]) -> str:
    return "\n".join(_text(name) for name in names)


def _text(name: str) -> str:
    """Return a file; what is not ours brings its folder's licence, which asks to be in every copy, and a page is one."""
    text, licence = (
        files("nanhunt.report.html").joinpath(path).read_text(encoding="utf-8").strip()
        for path in (name, "vendor/LICENSE")
    )
    return f"/*!\n{licence}\n*/\n{text}" if name.startswith("vendor/") else text
