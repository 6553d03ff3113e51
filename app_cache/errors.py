"""The errors of the package.

    AppCacheError
    ├── ConfigurationError (ValueError)   you: a value is wrong, the message says which and what is right
    ├── BackendError                      the server: it is away, slow, full or refuses
    └── NotWiredError (RuntimeError)      you: no cache is installed where one is asked for

The middleware raises none of them on a request: a broken backend is a miss. Direct access through
``get_backend`` raises `BackendError`.
"""


class AppCacheError(Exception):
    """The root of every error that this package raises."""


class ConfigurationError(AppCacheError, ValueError):
    """A setting, an option or an argument cannot work; the message names it and what would have been right."""


class BackendError(AppCacheError):
    """The backend could not do what was asked: it is away, too slow, full, or refused."""


class NotWiredError(AppCacheError, RuntimeError):
    """A cache was asked for where none is installed; the message says what to call."""
