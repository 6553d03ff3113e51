"""What an endpoint is declared to receive from path, query, headers and cookies."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, get_args

from fastapi.dependencies.utils import get_dependant, request_params_to_args
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBase, OAuth2, OpenIdConnect
from fastapi.security.base import SecurityBase
from pydantic import AliasChoices, AliasPath, BaseModel
from starlette.requests import Request

from app_cache.checks import is_header_name
from app_cache.guards import is_generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastapi.dependencies.models import Dependant
    from pydantic.fields import FieldInfo

    from app_cache.asgi import Scope

ANY = "*"
"""Stands for all names: those of a model that allows, or forbids, fields it does not name."""
_PLACES = ("path", "query", "header", "cookie")
_RECEIVED = {"query": "query_params", "header": "headers", "cookie": "cookies"}


class Parameters:
    """The parameters of an endpoint, its dependencies' included, that come from path, query, header and cookie.

    Args:
        dependant: What FastAPI knows of it, None where that is nothing.
        path_names: The names in the path of its route.
        overrides: What FastAPI runs in the place of dependencies.
    """

    def __init__(
        self, dependant: Dependant | None, path_names: Iterable[str], overrides: Mapping[Any, Any] | None = None
    ) -> None:
        self._dependant = dependant
        self._overrides = overrides or {}
        self._fields: dict[str, tuple[str, Any]] = {}
        self._path_names = frozenset(path_names)
        if dependant is not None:
            self._add(dependant)

    def _add(self, dependant: Dependant) -> None:
        for place in _PLACES:
            for parameter in getattr(dependant, f"{place}_params"):
                self._fields.setdefault(str(parameter.name), (place, parameter))
        for each in dependant.dependencies:
            self._add(each)

    @functools.cached_property
    def headers(self) -> frozenset[str]:
        """The request headers that they, or what overrides them, are declared to read, in lower case."""
        return self._declared(_headers_read)

    @functools.cached_property
    def keys_in_query(self) -> frozenset[str]:
        """The query parameters that their security schemes, or what overrides them, are declared to read."""
        return self._declared(_keys_in_query)

    @functools.cached_property
    def query(self) -> frozenset[str]:
        """The query parameters that they, or what overrides them, are declared to read; `ANY`: others too."""
        return frozenset({ANY}) if self._dependant is None else self._declared(_query_read)

    @functools.cached_property
    def may_go_on(self) -> bool:
        """Whether a dependency, what overrides it or a background task may do something after the answer.

        True where FastAPI knows nothing of the endpoint.
        """
        return self._dependant is None or bool(self._declared(_going_on))

    def _declared(self, read: Callable[[Dependant], frozenset[str]]) -> frozenset[str]:
        return frozenset() if self._dependant is None else _under(self._dependant, self._overrides, read)

    @property
    def names(self) -> frozenset[str]:
        """The names that a template may have."""
        return self._path_names | self._fields.keys()

    def is_of_url(self, name: str) -> bool:
        """Return whether the parameter *name* comes from path or query."""
        return name not in self._fields or self._fields[name][0] in ("path", "query")

    def in_path(self, name: str, path_params: Mapping[str, Any]) -> Any:
        """Return what the router found in the path for the parameter *name*, None where it is not from there."""
        place, parameter = self._fields.get(name, ("", None))
        return path_params.get(_name_in_path(parameter)) if place == "path" else None

    def sent_as(self, name: str) -> set[str]:
        """Return the names by which clients send the query parameter that the code calls *name*.

        Empty where no query parameter is called so, or what clients send as *name* may be read as well.
        """
        place, parameter = self._fields.get(name, ("", None))
        return set() if place != "query" or {name, ANY} & self.query else _names_read([parameter])

    def values(self, names: Iterable[str], scope: Scope, path_params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the validated values of *names*, defaults included, or None if one of them is not valid."""
        values: dict[str, Any] = {}
        for name in names:
            if name not in self._fields:
                values[name] = path_params.get(name)
                continue
            place, parameter = self._fields[name]
            found, errors = (
                _value_in_path(parameter, path_params)
                if place == "path"
                else request_params_to_args([parameter], getattr(Request(scope), _RECEIVED[place]))
            )
            if errors:
                return None
            values.update(found)
        return values


def _value_in_path(parameter: Any, path_params: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return what `request_params_to_args` does, without its look at what no parameter in a path can be."""
    value = path_params.get(_name_in_path(parameter))
    if value is None:
        return request_params_to_args([parameter], path_params)
    found, errors = parameter.validate(value, {}, loc=())
    return {parameter.name: found}, errors


def _name_in_path(parameter: Any) -> Any:
    return parameter.validation_alias or parameter.alias


def _under(
    dependant: Dependant, overrides: Mapping[Any, Any], read: Callable[[Dependant], frozenset[str]]
) -> frozenset[str]:
    """Return what *read* tells of *dependant*, its dependencies and what overrides them."""
    names = read(dependant)
    for each in dependant.dependencies:
        names |= _under(each, overrides, read) | _overriding(each, overrides, read)
    return names


def _overriding(
    dependant: Dependant, overrides: Mapping[Any, Any], read: Callable[[Dependant], frozenset[str]]
) -> frozenset[str]:
    """Return what *read* tells of what runs in the place of *dependant*: nothing, where that cannot be called."""
    try:
        if not overrides or dependant.call not in overrides:
            return frozenset()
        other = get_dependant(path=dependant.path or "", call=overrides[dependant.call])
    except Exception:  # noqa: BLE001  an object of the application's own: FastAPI says at the request what is wrong
        return frozenset()
    return _under(other, {call: each for call, each in overrides.items() if call is not dependant.call}, read)


def _headers_read(dependant: Dependant) -> frozenset[str]:
    """Return the headers that *dependant* itself declares, `ANY` among them where that is all of them."""
    names = (
        _names_read(dependant.header_params) | _keys_in(dependant, APIKeyIn.header) | _credentials_read(dependant)
    )
    spelt = names | {name.replace("_", "-") for name in names}
    return frozenset(name.lower() for name in spelt if is_header_name(name))


def _credentials_read(dependant: Dependant) -> set[str]:
    """Return which of Authorization and Cookie *dependant* itself reads, as a security scheme or by a cookie."""
    authorization = (
        {"authorization"} if isinstance(_model_of(dependant), HTTPBase | OAuth2 | OpenIdConnect) else set()
    )
    reads_cookie = dependant.cookie_params or _keys_in(dependant, APIKeyIn.cookie)
    return authorization | ({"cookie"} if reads_cookie else set())


def _query_read(dependant: Dependant) -> frozenset[str]:
    """Return the query parameters that *dependant* itself declares, `ANY` among them if it may read others too."""
    takes_request = dependant.request_param_name or dependant.http_connection_param_name
    names = _names_read(dependant.query_params) | _keys_in(dependant, APIKeyIn.query)
    return frozenset(names | {ANY} if takes_request else names)


def _names_read(parameters: Iterable[Any]) -> set[str]:
    """Return the names by which *parameters* are read, `ANY` among them where a model takes all."""
    names: set[str] = set()
    for parameter in parameters:
        models = _models_in(parameter.field_info.annotation)
        if any(model.model_config.get("extra") in ("allow", "forbid") for model in models):
            names.add(ANY)
        for model in models:
            by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
            for name, field in model.model_fields.items():
                names |= ({name} if by_name else set()) | (_aliases(field) or {name})
        if not models:
            names |= _aliases(parameter.field_info) or {parameter.alias}
    return names


def _going_on(dependant: Dependant) -> frozenset[str]:
    """Return the name of *dependant* if something of it runs when its answer has been sent."""
    has_exit = is_generator(dependant.call) and dependant.scope != "function"
    goes_on = dependant.background_tasks_param_name or has_exit
    return frozenset({str(dependant.name)}) if goes_on else frozenset()


def _keys_in_query(dependant: Dependant) -> frozenset[str]:
    """Return the query parameters that *dependant* itself reads as a security scheme."""
    return frozenset(_keys_in(dependant, APIKeyIn.query))


def _keys_in(dependant: Dependant, place: APIKeyIn) -> set[str]:
    """Return the name under which *dependant* reads the key of an API in *place*, if it is a scheme that does."""
    model = _model_of(dependant)
    return {model.name} if isinstance(model, APIKey) and model.in_ is place else set()


def _model_of(dependant: Dependant) -> Any:
    """Return what *dependant* says of itself in OpenAPI if it is a security scheme, else None."""
    scheme = inspect.unwrap(_scheme(dependant.call))
    return getattr(scheme, "model", None) if isinstance(scheme, SecurityBase) else None


def _scheme(call: Any) -> Any:
    """Return the object that *call* is, or that it calls as a method or a partial."""
    while isinstance(call, functools.partial) or inspect.ismethod(call):
        call = call.func if isinstance(call, functools.partial) else call.__self__
    return call


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that *annotation* is, or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _aliases(field: FieldInfo) -> set[str]:
    """Return the names that a value of *field* is read by, where it has others than its own."""
    alias = field.validation_alias or field.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    paths = [each.path[0] if isinstance(each, AliasPath) else each for each in choices]
    return {name for name in paths if isinstance(name, str)}


NO_PARAMETERS = Parameters(None, ())
