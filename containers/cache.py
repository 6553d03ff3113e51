"""The container: settings → backend → store, key generator, invalidation, values, metrics, health."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from dependency_injector import containers, providers

from app_cache.config import (
    ENVIRONMENTS,
    CacheSettings,
    build_backend,
    checked_environment,
    choose_environment,
    choose_namespace,
)
from app_cache.errors import ConfigurationError
from app_cache.health import HealthCheck
from app_cache.invalidation import InvalidationService
from app_cache.keys import DefaultKeyGenerator
from app_cache.services import Stores
from app_cache.values import ValueCache
from containers.parts import Container, Derived, Given, Part

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from app_cache.backends.base import CacheBackend
    from app_cache.config import Environment
    from app_cache.keys import KeyGenerator
    from app_cache.store import StoredResponses


def _key_generator(environment: Environment) -> KeyGenerator:
    make = checked_environment(environment).key_generator or DefaultKeyGenerator
    return make()


def _store(
    stores: Stores,
    backend: CacheBackend,
    namespace: str,
    clock: Callable[[], float],
    chance: Callable[[], float],
) -> StoredResponses:
    if not isinstance(stores, Stores):
        raise ConfigurationError(f"container.stores() must give Stores, not {stores!r}")
    return stores.of(backend, namespace, clock, chance)


def _invalidation(environment: Environment, store: StoredResponses) -> InvalidationService:
    make = checked_environment(environment).invalidation or InvalidationService
    return make(store)


def _metrics(store: StoredResponses) -> Counter[str]:
    return store.stats


class CacheContainer(containers.DeclarativeContainer):
    """What an application's cache is made of, for the environment that the settings name.

    What its parts give holds at the next request, as in ``with container.backend.override(MemoryBackend()):``.
    What belongs to a backend (store, clock, fills, writes under way) follows the one in force.
    """

    instance_type = Container

    settings = providers.ThreadSafeSingleton(CacheSettings)
    """The variables of the process; in a test give others: ``CacheContainer(settings=CacheSettings({…}))``.

    What was built by them stays until ``container.reset_singletons()``.
    """

    environments = providers.Object(ENVIRONMENTS)
    """The environments by name; give more: ``CacheContainer(environments={**ENVIRONMENTS, "preview": …})``."""

    environment = providers.ThreadSafeSingleton(choose_environment, settings, environments)
    """The environment that the settings name."""

    namespace = Part(choose_namespace, settings, environment)
    """What comes between ``cache:`` and each key."""

    backend = Part(build_backend, settings, environments)
    """The backend; building it connects to nothing."""

    clock = Given(time.time)
    """What tells the time, in epoch seconds; override it with a `FakeClock` in a test."""

    chance = Given(random.random)
    """What gives random numbers from 0 to below 1, for `jitter` and `early_refresh`; override it in a test."""

    stores = Part(Stores)
    """The stored responses of each backend that was in force."""

    store = Derived(_store, stores, backend, namespace, clock, chance)
    """The stored responses of the backend in force."""

    key_generator = Part(_key_generator, environment)
    """The key generator for requests whose policy and middleware name none."""

    invalidation = providers.Callable(_invalidation, environment, store)
    """A service that invalidates in the backend in force."""

    values = providers.Callable(ValueCache, store)
    """A cache of values in the backend in force."""

    metrics = providers.Callable(_metrics, store)
    """Counts of what happened, by the words of Cache-Status."""

    health = providers.ThreadSafeSingleton(HealthCheck, backend.provider)
    """The check of the backend in force."""
