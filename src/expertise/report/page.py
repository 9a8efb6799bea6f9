"""Templates to one self-contained page: styles and scripts inline, everything from a record escaped."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise.report import text
from expertise.report.records import Record, to_json
from expertise.runs.files import write_atomic
from expertise.runs.metrics import finite

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("expertise.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )

    def inline(name: str) -> Markup:
        # Not `include`: braces in a style or a script are none of jinja's.
        assert environment.loader is not None
        return Markup(environment.loader.get_source(environment, name)[0])  # noqa: S704 - our own file

    environment.globals["inline"] = inline
    environment.filters.update(
        number=text.number,
        signed=text.signed,
        compact=text.compact,
        whole=text.whole,
        listing=text.listing,
        pieces=text.pieces,
    )
    return environment


def render_page(template: str, **values: Any) -> str:
    """Render a template to a page that needs no other file.

    Args:
        template: a file in `templates/` that extends `page.html`.
        values: what the template names; a missing one is an error.
    """
    page = _environment().get_template(template).render(**values)
    # Half a character, as a byte-level tokenizer may leave in a name, cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def write_page(path: Path, record: Record, render: Callable[[Record], str]) -> Path:
    """Write a record as JSON, and the page that `render` draws of it beside it; the page's path.

    Raises:
        DiskError: the files cannot be written.
    """
    values = json.dumps(finite(to_json(record)), ensure_ascii=False, allow_nan=False)
    write_atomic(path.with_suffix(".json"), values + "\n")
    write_atomic(path, render(record))
    return path


def safe(markup: str) -> Markup:
    """Mark text that this package drew itself, and escaped itself, as not to be escaped again."""
    from markupsafe import Markup

    return Markup(markup)  # noqa: S704 - callers pass what they drew
