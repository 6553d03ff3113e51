"""Which backend the variables choose, what is said of wrong ones, and that nothing is read at import."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import certifi
import pytest
from pydantic import Field, SecretStr

from app_cache import config
from app_cache.backends.memory import MemoryBackend
from app_cache.backends.redis import RedisBackend
from app_cache.config import (
    BACKENDS,
    ENVIRONMENTS,
    CacheConfig,
    CacheSettings,
    Environment,
    build_backend,
    choose_environment,
    choose_namespace,
    memory_backend,
)
from app_cache.errors import AppCacheError, ConfigurationError
from app_cache.keys import DefaultKeyGenerator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VARIABLES = (
    "ENVIRONMENT",
    "CACHE_BACKEND",
    "CACHE_NAMESPACE",
    "USE_REDIS",
    "REDIS_URL",
    "REDIS_MAX_CONNECTIONS",
    "REDIS_SSL",
    "REDIS_SSL_CA_CERTS",
)
LOCAL = "redis://localhost:6379"


class Recorded:
    """Stands for `RedisBackend` and keeps what it is made with."""

    def __init__(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Recorded` is built where a `RedisBackend` would be."""
    monkeypatch.setattr(config, "RedisBackend", Recorded)


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the variables is set in the process; set some with what is returned."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def built(backend: Any) -> Any:
    """Return what tells one built backend from another: the size of a memory, the options of a Redis."""
    return backend.max_size if isinstance(backend, MemoryBackend) else backend.options


class TestSettings:
    def test_not_given(self) -> None:
        """A variable that is unset is not given: None, never False."""
        settings = CacheSettings({})
        assert settings.environment == "development"
        assert {getattr(settings, name.lower()) for name in VARIABLES[1:]} == {None}

    @pytest.mark.parametrize("empty", ["", "  "], ids=["empty", "blank"])
    def test_empty_is_not_given(self, empty: str) -> None:
        """A variable that is empty or blank is as one that is unset."""
        assert CacheSettings(dict.fromkeys(VARIABLES, empty)) == CacheSettings({})

    @pytest.mark.parametrize(
        ("variable", "text", "value"),
        [
            pytest.param("ENVIRONMENT", "staging", "staging", id="a name"),
            pytest.param("ENVIRONMENT", " staging\n", "staging", id="blanks around"),
            pytest.param("CACHE_BACKEND", "redis", "redis", id="a backend"),
            pytest.param("CACHE_NAMESPACE", "shop:*", "shop:*", id="a namespace is data"),
            pytest.param("USE_REDIS", "true", True, id="true"),
            pytest.param("USE_REDIS", "False", False, id="False"),
            pytest.param("USE_REDIS", "1", True, id="1"),
            pytest.param("REDIS_URL", "redis://h", "redis://h", id="a URL"),
            pytest.param("REDIS_MAX_CONNECTIONS", "7", 7, id="a number"),
            pytest.param("REDIS_SSL", "no", False, id="no"),
            pytest.param("REDIS_SSL_CA_CERTS", "/ca.pem", "/ca.pem", id="a path"),
        ],
    )
    def test_given(self, variable: str, text: str, value: Any) -> None:
        """Each variable is read under its name into the field of that name in lower case."""
        assert getattr(CacheSettings({variable: text}), variable.lower()) == value

    def test_exact_names(self) -> None:
        """A variable of another case or with a prefix is not ours."""
        assert CacheSettings({"redis_url": "redis://a", "APP_REDIS_URL": "redis://b"}) == CacheSettings({})

    def test_read_from_the_process(self, no_variables: pytest.MonkeyPatch) -> None:
        """Without a mapping the variables of the process are read, when the settings are made."""
        no_variables.setenv("CACHE_NAMESPACE", "shop")
        assert CacheSettings().cache_namespace == "shop"
        assert CacheSettings({}).cache_namespace is None

    def test_keyword_goes_first(self) -> None:
        """A keyword argument goes before the variable of its name."""
        assert CacheSettings({"CACHE_NAMESPACE": "shop"}, cache_namespace="bar").cache_namespace == "bar"

    @pytest.mark.parametrize(
        ("variable", "text", "right"),
        [
            pytest.param("CACHE_BACKEND", "memcached", "memory or redis", id="unknown backend"),
            pytest.param("USE_REDIS", "maybe", "true or false", id="no boolean"),
            pytest.param("REDIS_SSL", "2", "true or false", id="a number for a boolean"),
            pytest.param("REDIS_MAX_CONNECTIONS", "many", "a positive whole number", id="no number"),
            pytest.param("REDIS_MAX_CONNECTIONS", "0", "a positive whole number", id="zero"),
            pytest.param("REDIS_MAX_CONNECTIONS", "-5", "a positive whole number", id="negative"),
            pytest.param("REDIS_MAX_CONNECTIONS", "1.5", "a positive whole number", id="a fraction"),
        ],
    )
    def test_wrong(self, variable: str, text: str, right: str) -> None:
        """A value that does not parse is an error of ours with the variable, what is right, and the value."""
        with pytest.raises(ConfigurationError) as refused:
            CacheSettings({variable: text})
        assert str(refused.value) == f"{variable} must be {right}, not {text!r}"

    def test_all_that_is_wrong(self) -> None:
        """Several wrong values are told at once."""
        with pytest.raises(ConfigurationError, match=r"USE_REDIS .*; REDIS_MAX_CONNECTIONS"):
            CacheSettings({"USE_REDIS": "x", "REDIS_MAX_CONNECTIONS": "y"})

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(lambda: CacheSettings({}, redis_url=b"redis://:s3cret@h\xff"), id="the URL is no text"),
            pytest.param(
                lambda: CacheSettings({"REDIS_SSL": "redis://:s3cret@h"}), id="a URL in another variable"
            ),
        ],
    )
    def test_error_without_secret(self, make: Callable[[], CacheSettings]) -> None:
        """No error shows a secret, neither by itself nor by what caused it."""
        with pytest.raises(ConfigurationError) as refused:
            make()
        assert "s3cret" not in str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            pytest.param("production", "^CacheSettings takes variables, such as .*, not a str$", id="a name"),
            pytest.param({"USE_REDIS": True}, "^USE_REDIS must be text, .* a bool; .*use_redis=…", id="no text"),
        ],
    )
    def test_no_variables(self, environ: Any, message: str) -> None:
        """What is no mapping of texts is refused, with what would be right."""
        with pytest.raises(ConfigurationError, match=message):
            CacheSettings(environ)

    def test_frozen(self) -> None:
        """What is set later is refused, and not shown: it may have a password."""
        settings = CacheSettings({})
        with pytest.raises(ConfigurationError) as refused:
            settings.redis_url = "redis://:s3cret@h"
        assert (
            str(refused.value)
            == "CacheSettings is frozen: redis_url is an argument, as in CacheSettings(redis_url=…)"
        )
        assert settings.redis_url is None

    def test_unknown_keyword(self) -> None:
        """A keyword that is no setting is refused with those that are."""
        with pytest.raises(ConfigurationError, match=r"no redis_ulr; it has .*redis_url"):
            CacheSettings({}, redis_ulr="redis://h")

    def test_repr_without_secret(self) -> None:
        """The settings can be printed: the URL is not in it."""
        settings = CacheSettings({"REDIS_URL": "redis://:s3cret@h", "CACHE_NAMESPACE": "shop"})
        assert "shop" in repr(settings)
        assert "s3cret" not in repr(settings) + str(settings)

    def test_secret_of_a_subclass(self) -> None:
        """What is wrong in a setting of a subclass is named, and not shown: it may be a secret."""

        class ShopSettings(CacheSettings):
            shop_pin: SecretStr = Field(min_length=12)

        settings: Any = ShopSettings
        with pytest.raises(ConfigurationError, match=r"^SHOP_PIN must be valid$"):
            settings({"SHOP_PIN": "1234"})

    def test_subclass(self, no_variables: pytest.MonkeyPatch) -> None:
        """A subclass adds settings of its own, read in the same way."""

        class ShopSettings(CacheSettings):
            shop_name: str = "none"

        no_variables.setenv("SHOP_NAME", "books")
        no_variables.setenv("ENVIRONMENT", "testing")
        settings = ShopSettings()
        assert (settings.shop_name, settings.environment) == ("books", "testing")


@pytest.mark.usefixtures("recorded")
class TestChoice:
    @pytest.mark.parametrize(
        ("environ", "what"),
        [
            pytest.param({}, 100, id="nothing is given"),
            pytest.param({"ENVIRONMENT": "development"}, 100, id="development"),
            pytest.param({"USE_REDIS": "false"}, 100, id="development without Redis"),
            pytest.param({"REDIS_URL": "redis://h"}, 100, id="a URL alone does not mean Redis"),
            pytest.param({"USE_REDIS": "true"}, {"url": LOCAL, "max_connections": 5}, id="development with Redis"),
            pytest.param(
                {"USE_REDIS": "true", "REDIS_URL": "redis://h"},
                {"url": "redis://h", "url_source": "REDIS_URL", "max_connections": 5},
                id="development with Redis elsewhere",
            ),
            pytest.param({"ENVIRONMENT": "testing"}, 50, id="testing"),
            pytest.param({"ENVIRONMENT": "testing", "USE_REDIS": "true"}, 50, id="USE_REDIS is of development"),
            pytest.param(
                {"ENVIRONMENT": "staging"},
                {"url": "redis://staging-redis:6379", "max_connections": 10},
                id="staging",
            ),
            pytest.param(
                {"ENVIRONMENT": "staging", "REDIS_URL": "redis://h", "REDIS_SSL": "true"},
                {"url": "redis://h", "url_source": "REDIS_URL", "max_connections": 10, "ssl": True},
                id="staging by variables",
            ),
            pytest.param(
                {"ENVIRONMENT": "production", "REDIS_URL": "rediss://h"},
                {"url": "rediss://h", "url_source": "REDIS_URL", "max_connections": 50},
                id="production",
            ),
            pytest.param(
                {
                    "ENVIRONMENT": "production",
                    "REDIS_URL": "redis://h",
                    "REDIS_MAX_CONNECTIONS": "80",
                    "REDIS_SSL": "false",
                    "REDIS_SSL_CA_CERTS": certifi.where(),
                    "USE_REDIS": "false",
                },
                {
                    "url": "redis://h",
                    "url_source": "REDIS_URL",
                    "max_connections": 80,
                    "ssl": False,
                    "ssl_ca_certs": certifi.where(),
                },
                id="production by variables",
            ),
            pytest.param(
                {"CACHE_BACKEND": "redis"}, {"url": LOCAL, "max_connections": 5}, id="redis in development"
            ),
            pytest.param(
                {"CACHE_BACKEND": "redis", "ENVIRONMENT": "testing"},
                {"url": LOCAL, "max_connections": 5},
                id="redis in testing",
            ),
            pytest.param({"CACHE_BACKEND": "memory", "USE_REDIS": "true"}, 100, id="memory goes before USE_REDIS"),
            pytest.param({"CACHE_BACKEND": "memory", "ENVIRONMENT": "testing"}, 50, id="memory in testing"),
            pytest.param({"CACHE_BACKEND": "memory", "ENVIRONMENT": "staging"}, 1000, id="memory in staging"),
            pytest.param(
                {"CACHE_BACKEND": "memory", "ENVIRONMENT": "production"}, 1000, id="memory in production"
            ),
        ],
    )
    def test_backend(self, environ: dict[str, str], what: Any) -> None:
        """``CACHE_BACKEND`` if given, else what ``ENVIRONMENT`` names, is built with what the variables give."""
        assert built(build_backend(CacheSettings(environ))) == what

    @pytest.mark.parametrize(
        ("environ", "said"),
        [
            pytest.param({"REDIS_URL": "redis://:s3cret@h"}, 1, id="a URL alone"),
            pytest.param({"REDIS_URL": "redis://h", "USE_REDIS": "false"}, 0, id="not wanted"),
            pytest.param({"REDIS_URL": "redis://h", "USE_REDIS": "true"}, 0, id="used"),
            pytest.param({"REDIS_URL": "redis://h", "CACHE_BACKEND": "memory"}, 0, id="memory is asked for"),
            pytest.param({"REDIS_URL": "redis://h", "ENVIRONMENT": "testing"}, 0, id="testing"),
            pytest.param({}, 0, id="none"),
        ],
    )
    def test_url_that_is_not_used(
        self, caplog: pytest.LogCaptureFixture, environ: dict[str, str], said: int
    ) -> None:
        """In development a warning says that a URL alone does not mean Redis, and what does, without the URL."""
        caplog.set_level("WARNING", "app_cache")
        build_backend(CacheSettings(environ))
        line = "cache.redis_unused because='REDIS_URL is given, and development uses it with USE_REDIS=true'"
        assert caplog.messages == [line] * said

    @pytest.mark.parametrize("given", [{"REDIS_URL": "redis://:s3cret@h"}, None], ids=["a dict", "None"])
    def test_no_settings(self, given: Any) -> None:
        """What is no `CacheSettings` is refused by its type, and what is right is said."""
        with pytest.raises(ConfigurationError) as refused:
            choose_environment(given)
        kind = type(given).__name__
        assert str(refused.value) == f"settings must be CacheSettings, such as CacheSettings({{…}}), not a {kind}"

    @pytest.mark.parametrize("environment", ["production", "canary"])
    @pytest.mark.parametrize("backend", [None, "redis"], ids=["by environment", "by CACHE_BACKEND"])
    def test_url_required(self, environment: str, backend: str | None) -> None:
        """Where the URL is required, the error names ``REDIS_URL`` and the environment."""
        environments = {**ENVIRONMENTS, "canary": Environment("canary", BACKENDS["redis"])}
        settings = CacheSettings({"ENVIRONMENT": environment}, cache_backend=backend)
        with pytest.raises(
            ConfigurationError, match=f"REDIS_URL must be given with ENVIRONMENT={environment}: .*rediss://"
        ):
            build_backend(settings, environments)

    def test_environment_of_the_user(self) -> None:
        """An environment that the user adds chooses its backend like the others."""
        canary = Environment("canary", lambda settings: MemoryBackend(max_size=7))
        settings = CacheSettings({"ENVIRONMENT": "canary"})
        assert built(build_backend(settings, {**ENVIRONMENTS, "canary": canary})) == 7
        assert choose_environment(settings, {"canary": canary}) is canary

    @pytest.mark.parametrize("settings", [{}, {"CACHE_BACKEND": "memory"}, {"CACHE_BACKEND": "redis"}])
    @pytest.mark.parametrize("like", ["development", "testing", "staging"])
    def test_environment_by_another_name(self, like: str, settings: dict[str, str]) -> None:
        """An environment is the same by whatever name it stands in the mapping."""
        environments = {"local": ENVIRONMENTS[like]}
        there = build_backend(CacheSettings({"ENVIRONMENT": "local", **settings}), environments)
        assert built(there) == built(build_backend(CacheSettings({"ENVIRONMENT": like, **settings})))

    def test_backends_of_an_environment(self) -> None:
        """An environment of the user says what ``CACHE_BACKEND`` means in it, as the others do."""
        small = {"memory": partial(memory_backend, max_size=7)}
        canary = {"canary": Environment("canary", BACKENDS["redis"], backends=small)}
        asked = CacheSettings({"ENVIRONMENT": "canary", "CACHE_BACKEND": "memory"})
        assert built(build_backend(asked, canary)) == 7
        with pytest.raises(ConfigurationError, match=r"^CACHE_BACKEND=redis: .*'canary'\) has memory$"):
            build_backend(asked.model_copy(update={"cache_backend": "redis"}), canary)

    @pytest.mark.parametrize(
        "choose", [choose_environment, build_backend], ids=["choose_environment", "build_backend"]
    )
    @pytest.mark.parametrize("backend", [{}, {"CACHE_BACKEND": "memory"}], ids=["", "with CACHE_BACKEND"])
    def test_unknown_environment(self, choose: Callable[..., Any], backend: dict[str, str]) -> None:
        """An unknown environment is a ValueError that says which are known, even where the backend is given."""
        with pytest.raises(
            ValueError, match=r"^Unknown environment: prod; known are development, testing"
        ) as refused:
            choose(CacheSettings({"ENVIRONMENT": "prod"} | backend))
        assert isinstance(refused.value, AppCacheError)
        assert str(refused.value).endswith(
            "(the variable ENVIRONMENT names one, also where CACHE_BACKEND is given). "
            "CacheContainer(environments={**ENVIRONMENTS, …}) adds others"
        )

    def test_environment_with_a_secret(self) -> None:
        """What stands in ``ENVIRONMENT`` by mistake is shown without its secret, on one line."""
        with pytest.raises(ConfigurationError) as refused:
            choose_environment(CacheSettings({"ENVIRONMENT": "redis://user:pw@host\nmore"}))
        assert str(refused.value).startswith(r"Unknown environment: redis://***@host\nmore; known are")

    @pytest.mark.parametrize(
        ("environment", "what"),
        [
            pytest.param("development", 100, id="development"),
            pytest.param("testing", 50, id="testing"),
            pytest.param("staging", {"url": "redis://staging-redis:6379", "max_connections": 10}, id="staging"),
        ],
    )
    def test_create_backend(self, no_variables: pytest.MonkeyPatch, environment: str, what: Any) -> None:
        """`CacheConfig.create_backend` gives what its argument names, whatever the variables would choose."""
        no_variables.setenv("ENVIRONMENT", "production")
        no_variables.setenv("CACHE_BACKEND", "redis")
        assert built(CacheConfig.create_backend(environment)) == what

    def test_create_backend_by_variables(self) -> None:
        """`CacheConfig.create_backend` takes the other variables, also from a mapping."""
        backend = CacheConfig.create_backend("production", {"REDIS_URL": "redis://h"})
        assert built(backend)["url"] == "redis://h"

    def test_create_backend_unknown(self) -> None:
        """`CacheConfig.create_backend` refuses an unknown name as the document has it."""
        with pytest.raises(ValueError, match=r"^Unknown environment: nowhere"):
            CacheConfig.create_backend("nowhere", {})


class TestRealBackends:
    def test_production(self) -> None:
        """Production gives a Redis backend without connecting."""
        settings = CacheSettings({"ENVIRONMENT": "production", "REDIS_URL": "redis://nowhere.invalid:1"})
        assert isinstance(build_backend(settings), RedisBackend)

    @pytest.mark.parametrize("environ", [{"USE_REDIS": "true"}, {"ENVIRONMENT": "staging"}], ids=str)
    def test_default_url(self, environ: dict[str, str]) -> None:
        """The URLs that environments give by themselves are accepted."""
        assert isinstance(build_backend(CacheSettings(environ)), RedisBackend)

    def test_wrong_url(self) -> None:
        """A URL that cannot work is refused by the name of its variable, without its password."""
        settings = CacheSettings({"ENVIRONMENT": "staging", "REDIS_URL": "http://:s3cret@h"})
        with pytest.raises(ConfigurationError, match="REDIS_URL") as refused:
            build_backend(settings)
        assert "s3cret" not in str(refused.value)

    def test_tls_contradicted(self) -> None:
        """``REDIS_SSL=false`` beside a ``rediss://`` URL is refused; unset, the URL says it."""
        environ = {"ENVIRONMENT": "production", "REDIS_URL": "rediss://h"}
        assert isinstance(build_backend(CacheSettings(environ)), RedisBackend)
        with pytest.raises(ConfigurationError, match=r"^REDIS_SSL=false contradicts rediss://: leave it out"):
            build_backend(CacheSettings(environ | {"REDIS_SSL": "false"}))

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            pytest.param(
                {"REDIS_SSL_CA_CERTS": certifi.where()},
                "REDIS_SSL_CA_CERTS mean nothing without TLS: give REDIS_SSL=true, or leave them out",
                id="certificates without TLS",
            ),
            pytest.param(
                {"REDIS_URL": "unix:///run/ssl=True", "REDIS_SSL": "true"},
                "REDIS_SSL=true contradicts unix://: a Unix socket has no TLS",
                id="TLS on a Unix socket",
            ),
            pytest.param(
                {"REDIS_URL": "redis://h/ssl_ca_certs"},
                "REDIS_URL='redis://h/ssl_ca_certs' cannot be used",
                id="URL",
            ),
        ],
    )
    def test_contradictions_by_variable(self, environ: dict[str, str], message: str) -> None:
        """What contradicts itself is told by the names of the variables."""
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
            build_backend(CacheSettings({"ENVIRONMENT": "staging"} | environ))

    @pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "something else"])
    def test_certificates(self, tmp_path: Path, content: str | None) -> None:
        """Certificates that are not where ``REDIS_SSL_CA_CERTS`` says are told before anything connects."""
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_text(content)
        environ = {"ENVIRONMENT": "staging", "REDIS_URL": "rediss://h", "REDIS_SSL_CA_CERTS": str(file)}
        with pytest.raises(
            ConfigurationError, match=r"^REDIS_SSL_CA_CERTS must be the path of a PEM file, not '.*ca"
        ):
            build_backend(CacheSettings(environ))
        environ["REDIS_SSL_CA_CERTS"] = certifi.where()
        assert isinstance(build_backend(CacheSettings(environ)), RedisBackend)


class TestEnvironments:
    def test_values(self) -> None:
        """An environment is a value: it is not changed, another is made from it."""
        testing = ENVIRONMENTS["testing"]
        with pytest.raises(FrozenInstanceError):
            testing.namespace = "other"  # type: ignore[misc]
        assert replace(testing, namespace="other").backend is testing.backend

    @pytest.mark.parametrize(
        ("part", "given", "right"),
        [
            pytest.param("backend", MemoryBackend(), "callable of the settings .* a MemoryBackend", id="backend"),
            pytest.param("backend", None, "callable of the settings .* a NoneType", id="no backend"),
            pytest.param("key_generator", DefaultKeyGenerator(), "such as its class, not a Def", id="generator"),
            pytest.param("invalidation", 5, "callable of the stored responses .* not a int", id="invalidation"),
            pytest.param("backends", "memory", "a mapping of names .* not 'memory'", id="backends"),
            pytest.param(
                "backends", {"redis": MemoryBackend()}, "a mapping of names", id="backends that are built"
            ),
        ],
    )
    def test_parts(self, part: str, given: Any, right: str) -> None:
        """A part in the place of what makes it is refused at once, by environment and field."""
        parts: dict[str, Any] = {"backend": BACKENDS["memory"], part: given}
        with pytest.raises(ConfigurationError, match=rf"^{part} of Environment\('x'\) must be .*{right}"):
            Environment("x", **parts)

    @pytest.mark.parametrize(
        ("environments", "message"),
        [
            pytest.param([ENVIRONMENTS["testing"]], "must be a mapping of names, .* not a list$", id="list"),
            pytest.param({"testing": "memory"}, "must be an Environment, not the text 'memory'", id="text"),
            pytest.param({"testing": MemoryBackend}, "must be an Environment, not a ABCMeta", id="class"),
        ],
    )
    def test_no_environments(self, environments: Any, message: str) -> None:
        """What is no mapping of environments is refused where one is chosen."""
        with pytest.raises(ConfigurationError, match=message):
            build_backend(CacheSettings({"ENVIRONMENT": "testing"}), environments)

    @pytest.mark.usefixtures("recorded")
    @pytest.mark.parametrize("name", ["development", "testing", "staging", "production"])
    def test_copies(self, name: str) -> None:
        """An environment can be copied, as a container copies what it is given, sent elsewhere, and be a key."""
        environment = ENVIRONMENTS[name]
        assert {environment, copy.copy(environment)} == {environment}
        settings = CacheSettings({"REDIS_URL": LOCAL, "ENVIRONMENT": name})
        for other in (copy.deepcopy(environment), pickle.loads(pickle.dumps(environment))):  # noqa: S301 - ours
            assert built(build_backend(settings, {name: other})) == built(build_backend(settings))

    @pytest.mark.parametrize("mapping", [ENVIRONMENTS, BACKENDS], ids=["ENVIRONMENTS", "BACKENDS"])
    def test_read_only(self, mapping: Any) -> None:
        """The mappings cannot be changed for the whole process."""
        with pytest.raises(TypeError):
            mapping["testing"] = None

    @pytest.mark.parametrize("name", ["development", "testing", "staging", "production"])
    def test_names(self, name: str) -> None:
        """Each of the four environments stands under its name."""
        assert ENVIRONMENTS[name].name == name

    @pytest.mark.parametrize(
        ("variable", "of_environment", "namespace"),
        [
            pytest.param("shop", "testing", "shop", id="the variable goes first"),
            pytest.param("", "testing", "testing", id="that of the environment"),
            pytest.param("", None, "", id="none"),
        ],
    )
    def test_namespace(self, variable: str, of_environment: str | None, namespace: str) -> None:
        """``CACHE_NAMESPACE`` goes before the namespace of the environment."""
        environment = Environment("testing", BACKENDS["memory"], namespace=of_environment)
        assert choose_namespace(CacheSettings({"CACHE_NAMESPACE": variable}), environment) == namespace


def test_import_reads_no_environment() -> None:
    """Importing the package reads none of the variables and prints nothing, even where they are wrong."""
    code = f"""
import os, sys
asked = []

class Watched(type(os.environ)):
    def __getitem__(self, name):
        asked.append(name)
        return super().__getitem__(name)

    def __iter__(self):
        asked.append("all")
        return super().__iter__()

import dependency_injector, fastapi, pydantic_settings, redis.asyncio, structlog
os.environ.__class__ = Watched
import app_cache, app_cache.config, app_cache.logger_config
wrong = [name for name in asked if name == "all" or name in {VARIABLES!r}]
sys.exit(f"read at import: {{wrong}}" if wrong else 0)
"""
    wrong = os.environ | dict.fromkeys(VARIABLES, "wrong")
    ran = subprocess.run(
        [sys.executable, "-c", code], env=wrong, capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
