"""Secrets are shown nowhere: not in what is said of a value, nor in the error that refuses it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from app_cache import (
    AppCacheError,
    BackendRouter,
    CacheMiddleware,
    CacheSettings,
    CompressedBackend,
    Environment,
    MemoryBackend,
    RedisBackend,
    cache,
)
from app_cache.masking import escaped, without_secrets
from containers import CacheContainer, close, install
from tests.timing import assert_within

if TYPE_CHECKING:
    from collections.abc import Callable

URL: Any = "redis://shop:s3cret@cache.example.com"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("at redis://me:s3cret@host:1/0 now", "at redis://***@host:1/0 now", id="a URL"),
        pytest.param("not 'redis://me:s3 cret@host'", "not 'redis://***@host'", id="a URL with a blank"),
        pytest.param("['redis://me:s3 cret@h', 'x']", "['redis://***@h', 'x']", id="a URL in a list"),
        pytest.param("url=b'redis://me:s3 cret@h', 1", "url=b'redis://***@h', 1", id="a URL in bytes"),
        pytest.param("it's redis://me:s3cret@h now", "it's redis://***@h now", id="an apostrophe"),
        pytest.param("redis://host:1/0", "redis://host:1/0", id="a URL without a user"),
        pytest.param("ask me@host", "ask me@host", id="an address"),
        pytest.param("?db=0&password=s3cret&x=1", "?db=0&password=***&x=1", id="a query"),
        pytest.param("passwd=s3cret pwd=s3cret", "passwd=*** pwd=***", id="short names"),
        pytest.param("api_key='s3 cret', x=1", "api_key=***, x=1", id="an argument"),
        pytest.param('{"password": "s3 cret", "x": 1}', '{"password": ***, "x": 1}', id="JSON"),
        pytest.param("{'X-Api-Key': 's3cret', 'x': 1}", "{'X-Api-Key': ***, 'x': 1}", id="a dictionary"),
        pytest.param("Authorization: Bearer s3cret\nAge: 1", "Authorization: ***\nAge: 1", id="a header"),
        pytest.param("Set-Cookie: a=s3cret; Path=/", "Set-Cookie: ***", id="a cookie"),
        pytest.param("db_password: s3cret now", "db_password: *** now", id="YAML"),
        pytest.param("PGPASSWORD: s3cret", "PGPASSWORD: ***", id="a variable"),
        pytest.param("X-Auth-Token: s3cret", "X-Auth-Token: ***", id="a token in a header"),
        pytest.param('Cookie: a="b"; session=s3cret', "Cookie: ***", id="a cookie in quotes"),
        pytest.param(
            '{"authorization": ["Bearer s3cret"], "x": 1}', '{"authorization": ***, "x": 1}', id="a list"
        ),
        pytest.param("'pwd': 'it\\'s \"s3cret\" q', 1", "'pwd': ***, 1", id="both quotation marks"),
        pytest.param("the password is wrong", "the password is wrong", id="the word alone"),
        pytest.param("tokens: 5", "tokens: 5", id="another word"),
        pytest.param("(/reset/{token:path}) has", "(/reset/{token:path}) has", id="a path"),
        pytest.param("back as AccessToken: it is", "back as AccessToken: it is", id="a class"),
        pytest.param("at redis.token:6379 is", "at redis.token:6379 is", id="a host"),
    ],
)
def test_without_secrets(text: str, shown: str) -> None:
    """What precedes the ``@`` of a URL, and what follows the name of a secret, is left out, and nothing else."""
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "part",
    [
        "'a://",
        " 'a://",
        "'a:// \"b:// ",
        "x",
        "://",
        "a://@",
        "'a://\\",
        "\\'a:// ",
        "token':[",
        "pwd='",
        'pwd="x ',
        "pwd='\\",
        "token':   '",
        "pwd: ",
    ],
)
def test_long_texts(part: str) -> None:
    """The time that it takes grows with the length of the text, whatever that is: clients make texts, too."""
    assert_within(1.0, without_secrets, part * (200_000 // len(part)))


def test_escaped() -> None:
    """What a terminal would take for an order is shown as its escape."""
    assert escaped("naïve\\n") == "naïve\\n"
    assert escaped("a\nb\x1bc") == "a\\nb\\x1bc"


@pytest.mark.parametrize(
    "refuse",
    [
        pytest.param(lambda: install(FastAPI(), URL), id="container"),
        pytest.param(lambda: asyncio.run(close(URL)), id="container to close"),
        pytest.param(lambda: install(FastAPI(), CacheContainer(backend=URL)), id="backend of a container"),
        pytest.param(lambda: install(FastAPI(), CacheContainer(invalidation=URL)), id="service"),
        pytest.param(lambda: install(FastAPI(), CacheContainer(), key_generator=URL), id="key generator"),
        pytest.param(lambda: install(FastAPI(), CacheContainer(), default_policy=URL), id="default policy"),
        pytest.param(lambda: CacheMiddleware(FastAPI(), URL), id="backend"),
        pytest.param(lambda: MemoryBackend(URL), id="number"),
        pytest.param(lambda: CompressedBackend(MemoryBackend(), URL), id="name"),
        pytest.param(lambda: BackendRouter({"a": MemoryBackend()}, URL), id="name of a backend"),
        pytest.param(lambda: RedisBackend(socket_timeout=URL), id="option of Redis"),
        pytest.param(lambda: Environment("x", URL), id="what builds a backend"),
        pytest.param(lambda: cache(key=URL), id="option of a policy"),
        pytest.param(lambda: cache(tags=URL), id="tags"),
        pytest.param(
            lambda: install(FastAPI(), CacheContainer(settings=CacheSettings({"CACHE_NAMESPACE": f"{URL} x"}))),
            id="variable",
        ),
        pytest.param(lambda: install(FastAPI(), CacheContainer(namespace=f"{URL} x")), id="namespace"),
    ],
)
def test_url_where_another_value_belongs(refuse: Callable[[], object]) -> None:
    """The error that refuses a value shows no password in it, also where nobody would look for a URL."""
    with pytest.raises(AppCacheError) as refused:
        refuse()
    assert "s3cret" not in repr(refused.value)
