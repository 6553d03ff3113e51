"""What middleware further out knows of who asks: a user, and a session whose cookie it sets behind the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def has_user(scope: Mapping[str, Any]) -> bool:
    """Return whether ``scope["user"]``, as `AuthenticationMiddleware` sets it, is anybody known.

    What does not say that it is nobody is somebody.
    """
    user = scope.get("user")
    try:
        return bool(getattr(user, "is_authenticated", user is not None))
    except Exception:  # noqa: BLE001  a class of the application's own, which cannot tell
        return True


def is_readable(session: object) -> bool:
    """Return whether *session* can be looked at; what stands in for one that is not loaded yet cannot."""
    try:
        return isinstance(session, Mapping) or session is None
    except Exception:  # noqa: BLE001  a class of anybody's
        return False


def begins_session(scope: Mapping[str, Any]) -> bool:
    """Return whether middleware further out has put something into ``scope["session"]`` for this request.

    So it has if that is not empty though the request has no cookie, or says that it was modified.
    """
    session = scope.get("session")
    if not is_readable(session) or session is None:
        return session is not None
    is_modified = getattr(session, "modified", False)
    return bool(session) and bool(
        is_modified or not any(name.lower() == b"cookie" for name, _ in scope["headers"])
    )


def session_watch(scope: Mapping[str, Any]) -> Callable[[], bool] | None:
    """Return what tells whether ``scope["session"]`` has other values since, or says that it was modified.

    A Set-Cookie follows then. A change inside of a value is seen only where the session says so. None: there is no
    session, or none that can be looked at.
    """
    session = scope.get("session")
    if session is None or not is_readable(session):
        return None
    before, was_modified = {**session}, getattr(session, "modified", False)

    def is_changed() -> bool:
        try:
            return {**session} != before or (getattr(session, "modified", False) and not was_modified)
        except Exception:  # noqa: BLE001  values of the application's own, which may not be compared
            return True

    return is_changed
