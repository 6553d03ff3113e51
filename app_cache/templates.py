"""Templates of tags, patterns and URLs: text with names of parameters in braces, as `str.format` has them.

Nothing here fills them in; see `app_cache.routes.table`.
"""

from __future__ import annotations

import string
from functools import lru_cache

from app_cache.errors import ConfigurationError

TemplatePart = tuple[str, str | None, str, str | None]
"""Text, the name of what follows it or None, and its format specification and conversion."""


@lru_cache(maxsize=4096)
def template_parts(template: str) -> tuple[TemplatePart, ...]:
    """Return the parts of *template*.

    Raises:
        ConfigurationError: If a brace is open, or what stands in one is not a plain name, perhaps with a
            conversion and a plain format.
    """
    try:
        parts = tuple(
            (text, name, spec or "", conversion)
            for text, name, spec, conversion in string.Formatter().parse(template)
        )
    except ValueError as error:
        raise ConfigurationError(
            f"template {template!r} cannot be read: {error}; write {{{{ for a brace"
        ) from None
    for _, name, spec, conversion in parts:
        wrong = None if name is None else _why_not_filled_in(name, spec, conversion)
        if wrong is not None:
            raise ConfigurationError(f"template {template!r} has {wrong}")
    return parts


def _why_not_filled_in(name: str, spec: str, conversion: str | None) -> str | None:
    """Return what stands between braces and cannot, with what can, or None if it can."""
    if not name.isidentifier():
        return f"{{{name}}}: only plain names of parameters are filled in"
    if conversion not in (None, "r", "s", "a"):
        return f"!{conversion} after {name}: a conversion is !r, !s or !a"
    if "{" in spec:
        return f"{spec!r} in the format of {name}: a format has no braces"
    return None


@lru_cache(maxsize=4096)
def template_names(*templates: str) -> frozenset[str]:
    """Return the names between the braces of *templates*.

    Raises:
        ConfigurationError: As `template_parts` does.
    """
    return frozenset(name for each in templates for _, name, _, _ in template_parts(each) if name is not None)
