"""How a value that was kept as text is read as bytes, and the other way round: in memory, and compressed."""

from __future__ import annotations

from app_cache.errors import BackendError, Fault


def as_bytes(text: str) -> bytes:
    """Return *text* in UTF-8; lone surrogates, which JSON can carry, pass as three bytes each."""
    return text.encode("utf-8", "surrogatepass")


def as_text(value: bytes) -> str:
    """Return the text that *value* is in UTF-8.

    Raises:
        BackendError: If it is none.
    """
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise BackendError("the value is no text in UTF-8: read it with get_bytes", fault=Fault.REFUSED) from error


def no_text(value: object) -> TypeError:
    """Return the error that says that *value*, given to `set`, is no text."""
    return TypeError(f"value must be str, not {type(value).__name__}: set_bytes keeps bytes")
