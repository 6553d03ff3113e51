"""Which backend an environment means, and the variables that say so.

Nothing here is read at import. `CacheSettings` takes the variables when it is made, and what is wrong in them is a
`ConfigurationError`. An environment is a value of `ENVIRONMENTS`; add one by giving a mapping of your own:

    {**ENVIRONMENTS, "canary": Environment("canary", BACKENDS["redis"], namespace="canary")}

Ours differ in their defaults for variables that are not given: the arguments of `memory_backend`, `redis_backend`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis.backend import RedisBackend
from app_cache.backends.redis.url import DEFAULT_URL
from app_cache.errors import ConfigurationError
from app_cache.keys import checked_namespace
from app_cache.logger_config import logger
from app_cache.masking import escaped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic.fields import FieldInfo

    from app_cache.backends.base import CacheBackend
    from app_cache.invalidation import InvalidationService
    from app_cache.keys import KeyGenerator
    from app_cache.store import StoredResponses

    BackendBuilder = Callable[["CacheSettings"], CacheBackend]


class CacheSettings(BaseSettings):
    """The variables that choose and shape the backend; each field is named like its variable, in lower case.

    A variable that is unset, empty or blank is *not given*: None, never False. A keyword argument goes before the
    variable of its name. A field's description is what would be right; one that may hold a secret is not in the
    ``repr``.

    Args:
        environ: Where the variables are read; ``os.environ`` if not given.

    Raises:
        ConfigurationError: If a value does not parse; it names each such variable and what would be right.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    environment: str = Field(default="development", description="a name")
    """``ENVIRONMENT``: a name in the mapping of environments."""
    cache_backend: Literal["memory", "redis"] | None = Field(default=None, description="memory or redis")
    """``CACHE_BACKEND``: the backend to use, in place of that of the environment."""
    cache_namespace: str | None = Field(default=None, description="text")
    """``CACHE_NAMESPACE``: stands in place of the namespace of the environment."""
    use_redis: bool | None = Field(default=None, description="true or false")
    """``USE_REDIS``: whether development uses Redis; other environments do not ask."""
    redis_url: str | None = Field(default=None, repr=False, description="a URL")
    """``REDIS_URL``."""
    redis_max_connections: PositiveInt | None = Field(default=None, description="a positive whole number")
    """``REDIS_MAX_CONNECTIONS``: the size of the pool, in place of that of the environment."""
    redis_ssl: bool | None = Field(default=None, description="true or false")
    """``REDIS_SSL``: whether to connect by TLS; if not given, the URL says it."""
    redis_ssl_ca_certs: str | None = Field(default=None, description="the path of a file")
    """``REDIS_SSL_CA_CERTS``: the path of a file of certificates to trust."""

    def __init__(self, environ: Mapping[str, str] | None = None, **values: Any) -> None:
        fields = type(self).model_fields
        unknown = [name for name in values if name not in fields and not name.startswith("_")]
        if unknown:
            raise ConfigurationError(f"CacheSettings has no {', '.join(unknown)}; it has {', '.join(fields)}")
        try:
            super().__init__(**_given(fields, os.environ if environ is None else environ) | values)
        except ValidationError as error:
            raise ConfigurationError(_what_is_wrong(error, fields)) from None

    if not TYPE_CHECKING:  # or a type checker lets anything be set

        def __setattr__(self, name: str, value: object) -> None:
            if self.model_config.get("frozen") and not name.startswith("_"):
                kind = type(self).__name__
                raise ConfigurationError(f"{kind} is frozen: {name} is an argument, as in {kind}({name}=…)")
            super().__setattr__(name, value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 the name is the interface's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources without that of ``os.environ``: ``__init__`` reads the variables."""
        return init_settings, dotenv_settings, file_secret_settings


def memory_backend(_: CacheSettings, max_size: int | None = None) -> MemoryBackend:
    """Return a backend in memory, of *max_size* entries, or of its own default."""
    return MemoryBackend() if max_size is None else MemoryBackend(max_size=max_size)


def redis_backend(settings: CacheSettings, url: str | None = None, max_connections: int = 50) -> RedisBackend:
    """Return a backend in Redis, as ``REDIS_URL`` and the other ``REDIS_`` variables that are given say.

    Args:
        settings: The variables.
        url: Used if ``REDIS_URL`` is not given; None: that must be given.
        max_connections: Used if ``REDIS_MAX_CONNECTIONS`` is not given.

    Raises:
        ConfigurationError: If the URL is required and not given, `RedisBackend` refuses a value that is, or the
            file of ``REDIS_SSL_CA_CERTS`` has no certificates.
    """
    if url is None and settings.redis_url is None:
        raise ConfigurationError(
            f"REDIS_URL must be given with ENVIRONMENT={escaped(settings.environment)}: "
            "a URL such as rediss://cache.example.com:6379"
        )
    options = {"url": url, "max_connections": max_connections} | _given_options(settings)
    try:
        backend = RedisBackend(**options)
    except ConfigurationError as error:
        raise ConfigurationError(_by_variables(str(error))) from None
    if settings.redis_ssl_ca_certs is not None:
        _check_certificates(settings.redis_ssl_ca_certs)
    return backend


BACKENDS: Mapping[str, BackendBuilder] = MappingProxyType({"memory": memory_backend, "redis": redis_backend})
"""What ``CACHE_BACKEND`` may name; also ready to be the backend of an `Environment` of your own.

To give one other defaults: ``partial(redis_backend, url="redis://canary:6379", max_connections=20)``.
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """What differs between development, production and their like.

    Raises:
        ConfigurationError: If a part itself is given, and not a callable that makes it.
    """

    name: str
    backend: BackendBuilder
    """Builds the backend; connects to nothing."""
    key_generator: Callable[[], KeyGenerator] | None = None
    """Makes the key generator; the default one if None."""
    namespace: str | None = None
    """Stands before all keys unless ``CACHE_NAMESPACE`` is given."""
    invalidation: Callable[[StoredResponses], InvalidationService] | None = None
    """Makes the invalidation service; the default one if None."""
    backends: Mapping[str, BackendBuilder] | None = field(default=None, hash=False)
    """The builders that ``CACHE_BACKEND`` may name, by name: the one it names is used in place of *backend*."""

    def __post_init__(self) -> None:
        for part, right in _MAKES.items():
            make = getattr(self, part)
            if not callable(make) and (make is not None or part == "backend"):
                kind = type(make).__qualname__
                raise ConfigurationError(f"{part} of Environment({self.name!r}) must be {right}, not a {kind}")
        named: object = self.backends
        if named is not None and not (isinstance(named, Mapping) and all(map(callable, named.values()))):
            raise ConfigurationError(
                f"backends of Environment({self.name!r}) must be a mapping of names to callables of the settings, "
                f"such as {{**BACKENDS, 'memory': …}}, not {named!r}"
            )


_MAKES = {
    "backend": "a callable of the settings that makes one, such as BACKENDS['memory']",
    "key_generator": "a callable that makes one, such as its class",
    "invalidation": "a callable of the stored responses that makes one, such as its class",
}
"""What the parts of an `Environment` must be."""


def development_backend(settings: CacheSettings) -> CacheBackend:
    """Return a backend in Redis if ``USE_REDIS`` is true, else in memory; warn of a ``REDIS_URL`` without it."""
    if settings.use_redis is None and settings.redis_url is not None:
        logger.warning(
            "cache.redis_unused", because="REDIS_URL is given, and development uses it with USE_REDIS=true"
        )
    return _IN_DEVELOPMENT["redis" if settings.use_redis else "memory"](settings)


_LOCAL_REDIS = partial(redis_backend, url=DEFAULT_URL, max_connections=5)
_STAGING_REDIS = partial(redis_backend, url="redis://staging-redis:6379", max_connections=10)
_IN_DEVELOPMENT: dict[str, BackendBuilder] = {
    "memory": partial(memory_backend, max_size=100),
    "redis": _LOCAL_REDIS,
}
_IN_TESTING: dict[str, BackendBuilder] = {"memory": partial(memory_backend, max_size=50), "redis": _LOCAL_REDIS}
_IN_STAGING: dict[str, BackendBuilder] = {**BACKENDS, "redis": _STAGING_REDIS}

ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        "development": Environment("development", development_backend, backends=_IN_DEVELOPMENT),
        "testing": Environment("testing", _IN_TESTING["memory"], backends=_IN_TESTING),
        "staging": Environment("staging", _IN_STAGING["redis"], backends=_IN_STAGING),
        "production": Environment("production", redis_backend),
    }
)
"""What ``ENVIRONMENT`` may name."""


def choose_environment(
    settings: CacheSettings, environments: Mapping[str, Environment] = ENVIRONMENTS
) -> Environment:
    """Return the environment that *settings* name.

    Raises:
        ConfigurationError: If *environments* do not have it or are no mapping, or *settings* are something else
            than `CacheSettings`.
    """
    _check_settings(settings)
    if not isinstance(environments, Mapping):
        raise ConfigurationError(
            "environments must be a mapping of names, such as {**ENVIRONMENTS, 'preview': Environment(…)}, "
            f"not a {type(environments).__qualname__}"
        )
    environment = environments.get(settings.environment)
    if environment is None:
        known = ", ".join(environments)
        raise ConfigurationError(
            f"Unknown environment: {escaped(settings.environment)}; known are {known} "
            "(the variable ENVIRONMENT names one, also where CACHE_BACKEND is given). "
            "CacheContainer(environments={**ENVIRONMENTS, …}) adds others"
        )
    return checked_environment(environment)


def checked_environment(environment: object) -> Environment:
    """Return *environment* if it is one.

    Raises:
        ConfigurationError: If it is not, or is the name of one.
    """
    if not isinstance(environment, Environment):
        given = f"the text {environment!r}" if isinstance(environment, str) else None
        raise ConfigurationError(
            f"environment must be an Environment, not {given or f'a {type(environment).__qualname__}'}; "
            "CacheContainer(settings=CacheSettings({'ENVIRONMENT': …})) chooses one by its name"
        )
    return environment


def choose_namespace(settings: CacheSettings, environment: Environment) -> str:
    """Return ``CACHE_NAMESPACE`` if it is given, else the namespace of *environment*, else none: ``""``.

    Raises:
        ConfigurationError: If it cannot stand in a key, or *environment* is no `Environment`.
    """
    environment = checked_environment(environment)
    given = settings.cache_namespace
    try:
        return checked_namespace(given or environment.namespace or "")
    except ConfigurationError as error:
        raise ConfigurationError(f"CACHE_NAMESPACE: {error}" if given else str(error)) from None


def build_backend(settings: CacheSettings, environments: Mapping[str, Environment] = ENVIRONMENTS) -> CacheBackend:
    """Return the backend that ``CACHE_BACKEND`` names if it is given, else that of the environment.

    With ``CACHE_BACKEND`` the environment still says the sizes, by its `backends`. Nothing is connected to.

    Raises:
        ConfigurationError: If the environment is unknown, or a value that its backend needs is missing or wrong.
    """
    environment = choose_environment(settings, environments)
    named = settings.cache_backend
    if named is None:
        return environment.backend(settings)
    backends = BACKENDS if environment.backends is None else environment.backends
    if named not in backends:
        has = ", ".join(map(str, backends)) or "none"
        raise ConfigurationError(f"CACHE_BACKEND={named}: backends of Environment({environment.name!r}) has {has}")
    return backends[named](settings)


class CacheConfig:
    """Builds the backend of an environment by its name."""

    @staticmethod
    def create_backend(environment: str, environ: Mapping[str, str] | None = None) -> CacheBackend:
        """Return the backend that *environment* names in `ENVIRONMENTS`.

        ``ENVIRONMENT`` and ``CACHE_BACKEND`` have no say here; `build_backend` is for what they choose.

        Args:
            environment: ``"development"``, ``"testing"``, ``"staging"`` or ``"production"``.
            environ: Where the other variables are read; ``os.environ`` if not given.

        Raises:
            ConfigurationError: As from `build_backend`; it is a ValueError.
        """
        settings = CacheSettings(environ, environment=environment)
        return choose_environment(settings).backend(settings)


def _check_settings(settings: object) -> None:
    if not isinstance(settings, CacheSettings):
        kind = type(settings).__qualname__
        raise ConfigurationError(f"settings must be CacheSettings, such as CacheSettings({{…}}), not a {kind}")


def _given(names: Iterable[str], environ: Any) -> dict[str, Any]:
    """Return what *environ* gives for the fields called *names*, by these names.

    Raises:
        ConfigurationError: If *environ* is no mapping, or a value in it is no text.
    """
    if not isinstance(environ, Mapping):
        raise ConfigurationError(
            "CacheSettings takes variables, such as {'ENVIRONMENT': 'testing'}, "
            f"not a {type(environ).__qualname__}"
        )
    found = {name: environ.get(name.upper(), "") for name in names}
    for name, value in found.items():
        if not isinstance(value, str):
            raise ConfigurationError(
                f"{name.upper()} must be text, as a variable is, not a {type(value).__qualname__}; "
                f"CacheSettings({name}=…) takes it as it is"
            )
    return {name: text.strip() for name, text in found.items() if text.strip()}


def _given_options(settings: CacheSettings) -> dict[str, Any]:
    """Return the options of `RedisBackend` that *settings* give."""
    options = {
        "url": settings.redis_url,
        "url_source": None if settings.redis_url is None else "REDIS_URL",
        "max_connections": settings.redis_max_connections,
        "ssl": settings.redis_ssl,
        "ssl_ca_certs": settings.redis_ssl_ca_certs,
    }
    return {name: value for name, value in options.items() if value is not None}


_VARIABLES = {"ssl_ca_certs": "REDIS_SSL_CA_CERTS", "ssl=True": "REDIS_SSL=true", "ssl=False": "REDIS_SSL=false"}
"""Words of `RedisBackend` about its options, and what they are called as variables."""


def _by_variables(message: str) -> str:
    """Return the *message* of `RedisBackend` with variables in place of options; one of the URL names its own."""
    if message.startswith("REDIS_URL"):
        return message
    for option, variable in _VARIABLES.items():
        message = message.replace(option, variable)
    return message


def _check_certificates(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigurationError(
            f"REDIS_SSL_CA_CERTS must be the path of a PEM file, not {path!r}: {error.strerror or error}"
        ) from error


def _what_is_wrong(error: ValidationError, fields: Mapping[str, FieldInfo]) -> str:
    """Return a clause for each of *fields* that pydantic refused: its variable, what is right, what it is.

    What a variable of a subclass holds is not shown: it may be a secret.
    """
    clauses = []
    for detail in error.errors(include_url=False, include_context=False):
        name = str(detail["loc"][0]) if detail["loc"] else "settings"
        ours, field = CacheSettings.model_fields.get(name), fields.get(name)
        shown = f", not {detail['input']!r}" if ours is not None and ours.repr else ""
        clauses.append(f"{name.upper()} must be {(field and field.description) or 'valid'}{shown}")
    return "; ".join(clauses)
