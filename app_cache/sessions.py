"""What middleware further out knows of the client: a user, and a session whose cookie it sets after the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_user(scope: Mapping[str, Any]) -> bool:
    """Return whether ``request.user``, as `AuthenticationMiddleware` sets it, or ``request.state.user`` is known.

    A user that does not say that it is nobody is somebody; what is empty or False in the state is nobody.
    """
    in_state = (scope.get("state") or {}).get("user")
    return _is_somebody(scope.get("user")) or (_is_something(in_state) and _is_somebody(in_state))


def _is_something(value: object) -> bool:
    try:
        return bool(value)
    except Exception:  # noqa: BLE001  as below
        return True


def _is_somebody(user: object) -> bool:
    try:
        return bool(getattr(user, "is_authenticated", user is not None))
    except Exception:  # noqa: BLE001  a class of the application's own, which cannot tell
        return True


def is_readable(session: object) -> bool:
    """Return whether *session* can be looked at; an object that stands in for one not loaded yet cannot."""
    try:
        _ = bool(session), _is_modified(session)
        return session is None or isinstance(session, Mapping)
    except Exception:  # noqa: BLE001  a class of anybody's
        return False


def begins_session(scope: Mapping[str, Any]) -> bool:
    """Return whether middleware further out has put something into ``scope["session"]`` for this request.

    It has if the session is not empty and the request has no cookie, or the session says that it was modified; and
    if the session cannot be looked at.
    """
    session = scope.get("session")
    if session is None or not is_readable(session):
        return session is not None
    has_cookie = any(name.lower() == b"cookie" for name, _ in scope["headers"])
    return bool(session) and (_is_modified(session) or not has_cookie)


class SessionWatch:
    """What becomes of a *session*, which middleware further out keeps by a cookie, from now on."""

    def __init__(self, session: object) -> None:
        self._session: Any = session
        try:
            self._before, self._was_modified = _values(session), _is_modified(session)
            self._is_readable = True
        except Exception:  # noqa: BLE001  as above
            self._is_readable = False

    def is_changed(self) -> bool:
        """Return whether it has other values than it had, or says that it was modified: a Set-Cookie follows then.

        A change inside of a value is seen only where the session says so. A session that cannot be looked at has
        changed.
        """
        try:
            return (
                not self._is_readable
                or _values(self._session) != self._before
                or (_is_modified(self._session) and not self._was_modified)
            )
        except Exception:  # noqa: BLE001  values of the application's own, too, which may not be compared
            return True

    def is_read(self) -> bool:
        """Return whether it says that it was looked at: its middleware then adds Cookie to Vary."""
        try:
            return getattr(self._session, "accessed", False) is True
        except Exception:  # noqa: BLE001  as above
            return False


def session_watch(scope: Mapping[str, Any]) -> SessionWatch | None:
    """Return a watch of ``scope["session"]``; None: there is no session."""
    session = scope.get("session")
    return None if session is None else SessionWatch(session)


def _is_modified(session: object) -> bool:
    return bool(getattr(session, "modified", False))


def _values(session: Any) -> object:
    """Return the values in *session*; None for one that tells of changes itself: it may note a look as a read."""
    if isinstance(session, dict) or not hasattr(session, "modified"):
        return {**session}
    return None
