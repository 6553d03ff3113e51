"""Which requests a policy has, and what else tells their answers apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from starlette.endpoints import HTTPEndpoint

from app_cache.checks import CACHEABLE_METHODS
from app_cache.errors import ConfigurationError
from app_cache.guards import guarded
from app_cache.keys import full_path, root_paths, without_root
from app_cache.logger_config import warn_once
from app_cache.policy import CachePolicy
from app_cache.routes.parameters import ANY
from app_cache.rules.glob import compile_glob
from app_cache.templates import template_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from app_cache.asgi import Scope

SAFE_AND_CACHED = frozenset({"GET", "QUERY"})
_PARAMETER = re.compile(r"\{\w+(:\w+)?\}")
"""A parameter as paths of routes have it, where a glob has a star."""


class Declared(Protocol):
    """What endpoints are declared to read."""

    @property
    def headers(self) -> frozenset[str]:
        """Request headers, in lower case."""
        ...

    @property
    def keys_in_query(self) -> frozenset[str]:
        """Query parameters of security schemes."""
        ...


class Fallbacks:
    """The policies of what has none of its own; of unsafe methods only for those that a policy names.

    Args:
        by_path: Globs over the whole decoded path, with the root path or without it, and their policies, None for
            what stays out of the cache; the first that matches counts.
        default: For all other paths.

    Raises:
        ConfigurationError: If one is no policy, a pattern cannot work, or a tag has to be filled in: there is no
            endpoint whose parameters could.
    """

    def __init__(self, by_path: Mapping[str, CachePolicy | None] | None, default: CachePolicy | None) -> None:
        if default is not None:
            _check_fallback("default_policy", default)
        if not isinstance(by_path or {}, Mapping):
            raise ConfigurationError(
                f"policies must be a mapping such as {{'/public/*': CachePolicy()}}, not {by_path!r}"
            )
        self._by_path: list[tuple[Callable[[str], bool], CachePolicy | None]] = []
        for pattern, policy in (by_path or {}).items():
            _check_path_pattern(pattern)
            if policy is not None:
                _check_fallback(f"policies[{pattern!r}]", policy)
            self._by_path.append((compile_glob(pattern), policy))
        self._default = default
        self.are_none = not self._by_path and default is None
        """Whether there are none at all."""

    def policy(self, scope: Scope, method: str, root_path: str = "") -> CachePolicy | None:
        """Return the policy for requests of *method* to the path of *scope*, or None.

        *root_path*: That of the application, which it puts in the place of the scope's.
        """
        paths = _paths(scope, root_path) if self._by_path else []
        found = next((policy for matches, policy in self._by_path if any(map(matches, paths))), self._default)
        return found if found is not None and _covers(found, method) else None


def _paths(scope: Scope, root_path: str) -> list[str]:
    """Return the path of *scope* as the client sends it, and as routes match it.

    They match it without a root path, and as if there were no line feed at its end.
    """
    whole = full_path(scope)
    paths = [whole, *(without_root(whole, root) for root in root_paths(scope, root_path))]
    if root_path:
        paths.append(full_path({**scope, "root_path": root_path}))
    return [*paths, *(path[:-1] for path in paths if path.endswith("\n"))]


def _check_path_pattern(pattern: object) -> None:
    if not isinstance(pattern, str) or not pattern.startswith(("/", "*", "?", "[")):
        raise ConfigurationError(f"policies must hold globs over paths, such as '/public/*', not {pattern!r}")
    glob = _PARAMETER.sub("*", pattern)
    if glob != pattern:
        raise ConfigurationError(f"policies must hold globs over paths: {glob!r}, not {pattern!r}")


def _check_fallback(name: str, policy: object) -> None:
    if not isinstance(policy, CachePolicy):
        raise ConfigurationError(f"{name} must be a CachePolicy, not {policy!r}")
    filled = [] if callable(policy.tags) else [tag for tag in policy.tags if template_names(tag)]
    if filled:
        raise ConfigurationError(
            f"{name} has the tag {filled[0]!r}, but no endpoint whose parameters could fill it in; "
            "give tags as a callable of the request"
        )


def _covers(policy: CachePolicy, method: str) -> bool:
    """Return whether a policy that is not written on an endpoint has the requests of *method*."""
    return method in (policy.methods or SAFE_AND_CACHED) or (method == "HEAD" and _covers(policy, "GET"))


def methods_of(policy: CachePolicy, context: Any) -> frozenset[str]:
    """Return the methods of a route that are cached.

    POST is one of them if *policy* names it, or if the route has neither GET nor QUERY.
    """
    of_route = frozenset(context.methods or CACHEABLE_METHODS | _head_as_get(context))
    cached = of_route & (policy.methods or CACHEABLE_METHODS)
    if policy.methods is None and cached & SAFE_AND_CACHED:
        cached &= SAFE_AND_CACHED
    return cached | ({"HEAD"} & of_route if "GET" in cached else frozenset())


def _head_as_get(context: Any) -> frozenset[str]:
    """Return HEAD if a class is the endpoint, in which it is answered as GET."""
    endpoint = getattr(context, "endpoint", None)
    is_get = isinstance(endpoint, type) and issubclass(endpoint, HTTPEndpoint) and not hasattr(endpoint, "head")
    return frozenset({"HEAD"}) if is_get else frozenset()


def has_dependencies(context: Any) -> bool:
    """Return whether a route has a dependency to run, its routers' and application's included.

    One without is not cached by a policy that is guarded: nothing guards it.
    """
    dependant = getattr(context, "dependant", None)
    return dependant is not None and bool(dependant.dependencies)


def put_guard_before_endpoint(context: Any) -> None:
    """Put what asks the guard of each request in the place of what FastAPI calls as the endpoint of a route.

    Raises:
        ConfigurationError: If the endpoint cannot ask.
    """
    context.dependant.call = guarded(context.dependant.call)


def put_in_force(policy: CachePolicy, context: Any, declared: Declared) -> CachePolicy | None:
    """Return *policy* as it is for the endpoint of a route, which is *declared* to read that; or None.

    If it is guarded, the endpoint asks its guard from now on.

    Raises:
        ConfigurationError: If the endpoint cannot ask.
    """
    if policy.guarded:
        if not has_dependencies(context):
            return None
        put_guard_before_endpoint(context)
    return keyed_by(policy, [declared])


def keyed_by(policy: CachePolicy, declared: Iterable[Declared], *, is_sure: bool = True) -> CachePolicy | None:
    """Return *policy* with what endpoints are *declared* to read in its key, unless it excludes that.

    Those are headers, and the query parameters of security schemes. Authorization and Cookie are left out where
    their presence alone keeps an answer from being shared: in the key they would say that it may be. If *policy*
    goes by the RFC alone (`http_only`), the key says nothing of that, and they join it. They are left out all the
    same where it is not sure which endpoint answers: `Plan.is_for` asks of the one that did whether it reads them.

    None: an endpoint is declared to read any header, and no key tells its answers apart.
    """
    declared = [*declared]
    guarded_apart = frozenset() if policy.http_only and is_sure else frozenset({"authorization", "cookie"})
    headers = frozenset().union(*(each.headers for each in declared)) - guarded_apart
    unkeyed = headers - {*policy.include_headers, *policy.exclude_headers}
    if ANY in unkeyed:
        return None
    if unkeyed:
        policy = replace(policy, include_headers=(*policy.include_headers, *sorted(unkeyed)))
    if policy.include_query is None:
        return policy
    return replace(policy, include_query=policy.include_query.union(*(each.keys_in_query for each in declared)))


def look_at_header_names(policy: CachePolicy, route: str, declared: Collection[str]) -> None:
    """Warn of headers in *policy* that only the code calls so: with an underscore, and not *declared* with it."""
    for option in ("include_headers", "exclude_headers"):
        for name in getattr(policy, option):
            if "_" in name and name not in declared:
                sent_as = name.replace("_", "-")
                warn_once("policy.header_not_sent", route=route, option=option, name=name, sent_as=sent_as)
