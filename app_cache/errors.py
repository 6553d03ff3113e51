"""The errors of the package.

    AppCacheError
    ├── ConfigurationError (ValueError)   you: a value is wrong, the message says which and what is right
    ├── EncodingError (TypeError)         you: a value cannot be kept as it is, the message names its type
    ├── BackendError                      the server: it is away, slow, full or refuses
    └── NotWiredError (RuntimeError)      you: no cache is installed where one is asked for

The middleware raises none of them on a request, for a broken backend is a miss; but for a policy that cannot work,
where no lifespan or `install` could tell so before. Direct access through ``get_backend`` raises `BackendError`.
No message shows a secret that can be told to be one, whatever value it names.
"""

from enum import Enum

from app_cache.masking import without_secrets


class AppCacheError(Exception):
    """The root of the errors that are this package's own; TypeError, TimeoutError and their like are Python's."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_secrets(each) if isinstance(each, str) else each for each in args))


class ConfigurationError(AppCacheError, ValueError):
    """A setting, an option or an argument cannot work; the message names it and what would have been right."""


class Fault(Enum):
    """What kept a backend from doing what it was asked."""

    AWAY = "away"
    """There is no connection, or no answer in time."""
    BUSY = "busy"
    """No connection came free in time: whether the backend is there is not known."""
    DENIED = "denied"
    """It does not know the password, or does not permit the operation."""
    FULL = "full"
    """It answers that it has no room."""
    READ_ONLY = "read_only"
    """It answers that it may only be read."""
    REFUSED = "refused"
    """It answers that it will not, for another reason."""
    UNKNOWN = "unknown"
    """It raised something that is no `BackendError`."""
    STALLED = "stalled"
    """The event loop of this process stood still meanwhile: whether the backend is there is not known."""


class EncodingError(AppCacheError, TypeError):
    """A value cannot be kept in a `ValueCache` so that it comes back as it is; the message names its type."""


class BackendError(AppCacheError):
    """The backend could not do what was asked: it is away, too slow, full, or refused.

    Args:
        *args: The message.
        fault: Which of these it is.
    """

    def __init__(self, *args: object, fault: Fault = Fault.AWAY) -> None:
        super().__init__(*args)
        self.fault = fault


class NotWiredError(AppCacheError, RuntimeError):
    """A cache was asked for where none is installed; the message says what to call."""
