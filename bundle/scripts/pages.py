"""Fills the templates of HTML pages: single files that open offline, all with the look of ``page_base.html``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from scripts.files import replacing


def write_page(template: str, content: Mapping[str, Any], path: str | Path) -> str:
    """Write a page, whole or not at all; what it shows is escaped.

    Args:
        template: its place in this folder; it extends ``page_base.html``.
        content: name to text, numbers, and pictures as data URIs.
        path: the file to write.

    Returns:
        Its path.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template(template).render(content)
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")
    return str(path)
