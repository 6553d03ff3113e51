"""What the URLs of Redis say, and what is said of those that say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cache.backends.redis.url import RedisUrl, agreed, parse_redis_url, shown
from app_cache.errors import ConfigurationError

READ = [
    ("redis://localhost:6379", RedisUrl("redis", (("localhost", 6379),))),
    ("redis://localhost:6380", RedisUrl("redis", (("localhost", 6380),))),
    ("redis://:password@localhost:6379", RedisUrl("redis", (("localhost", 6379),), password="password")),
    (
        "redis://username:password@localhost:6379",
        RedisUrl("redis", (("localhost", 6379),), username="username", password="password"),
    ),
    ("redis://localhost:6379/1", RedisUrl("redis", (("localhost", 6379),), db=1)),
    ("rediss://localhost:6380", RedisUrl("rediss", (("localhost", 6380),))),
    (
        "redis+sentinel://sentinel-host:26379/mymaster",
        RedisUrl("redis+sentinel", (("sentinel-host", 26379),), service="mymaster"),
    ),
    (
        "rediss+sentinel://alice:pw@h1,h2:26380/mymaster/3",
        RedisUrl(
            "rediss+sentinel",
            (("h1", 26379), ("h2", 26380)),
            None,
            "mymaster",
            username="alice",
            password="pw",
            db=3,
        ),
    ),
    ("valkey://cache", RedisUrl("valkey", (("cache", 6379),))),
    ("valkeys://cache/0", RedisUrl("valkeys", (("cache", 6379),), db=0)),
    ("unix:///run/redis.sock", RedisUrl("unix", path="/run/redis.sock")),
    (
        "unix://alice:pw@/run/my%20redis.sock?db=2",
        RedisUrl("unix", path="/run/my redis.sock", username="alice", password="pw", db=2),
    ),
    ("unix:///run/redis.sock?password=p%40ss", RedisUrl("unix", path="/run/redis.sock", password="p@ss")),
    ("redis://", RedisUrl("redis", (("localhost", 6379),))),
    ("redis://:@localhost/", RedisUrl("redis", (("localhost", 6379),))),
    ("REDIS://alice@localhost?db=4", RedisUrl("redis", (("localhost", 6379),), username="alice", db=4)),
    ("redis://a%3Ab:p%2F%40%23%3Fs@h", RedisUrl("redis", (("h", 6379),), username="a:b", password="p/@#?s")),
    ("redis://[::1]:7000/2", RedisUrl("redis", (("::1", 7000),), db=2)),
]


@pytest.mark.parametrize(("url", "said"), READ, ids=[url for url, _ in READ])
def test_read(url: str, said: RedisUrl) -> None:
    """Each form of URL gives server, user, password and database, with the customary defaults."""
    assert parse_redis_url(url) == said


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("redis://h", False),
        ("rediss://h", True),
        ("valkey://h", False),
        ("valkeys://h", True),
        ("unix:///s", False),
        ("redis+sentinel://h/s", False),
        ("rediss+sentinel://h/s", True),
    ],
)
def test_tls(url: str, tls: bool) -> None:
    """The second s of a scheme asks for TLS."""
    assert parse_redis_url(url).tls is tls


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("rediss://alice:s3cret@cache:1/2", "rediss://***@cache:1/2"),
        ("redis://alice@cache", "redis://***@cache:6379/0"),
        ("valkey://[::1]", "valkey://[::1]:6379/0"),
        ("unix://:s3cret@/run/r.sock?db=1", "unix://***@/run/r.sock?db=1"),
        ("redis+sentinel://:s3cret@a,b/m", "redis+sentinel://***@a:26379,b:26379/m/0"),
    ],
)
def test_as_text(url: str, text: str) -> None:
    """As text a URL names the server and the database, and neither user nor password."""
    assert str(parse_redis_url(url)) == text
    assert "s3cret" not in repr(parse_redis_url(url))


REFUSED = [
    pytest.param(None, "not None", id="None"),
    pytest.param("", "not ''", id="empty"),
    pytest.param(b"redis://:s3cret@h", "not an object of type bytes", id="bytes"),
    pytest.param("localhost:6379", "begin with redis://", id="no scheme"),
    pytest.param(" redis://:s3cret@h", "begins or ends with a blank", id="a blank before"),
    pytest.param("redis://:s3cret@h ", "begins or ends with a blank", id="a blank after"),
    pytest.param("redis://h\n", "begins or ends with a blank", id="a line break"),
    pytest.param('"redis://:s3cret@h"', "begins with a quotation mark", id="in quotation marks"),
    pytest.param("'redis://h", "begins with a quotation mark", id="behind an apostrophe"),
    pytest.param("http://:s3cret@h", "begin with redis://", id="another scheme"),
    pytest.param("redis+cluster://:s3cret@h", "Cluster is not supported yet", id="cluster"),
    pytest.param("redis+sentinel://:s3cret@h:26379", "name the service", id="sentinel without a service"),
    pytest.param("redis+sentinel://h/m/one", "number of the database", id="sentinel with a wrong database"),
    pytest.param("redis://a,b", "for Sentinel", id="several hosts without sentinel"),
    pytest.param("redis://h:0", "from 1 to 65535", id="port 0"),
    pytest.param("redis://h:99999", "from 1 to 65535", id="port too large"),
    pytest.param("redis://localhost:63790000", "63790000' cannot be used: a port is", id="port of many digits"),
    pytest.param("redis://h:s3cret63790000", "host:port", id="password that ends with digits"),
    pytest.param("redis://:s3cret@h:port", "***@h:port' cannot be used: a port is a number", id="no port"),
    pytest.param("redis://h:${PORT}/0", "h:${PORT}/0' cannot be used: a port is a number", id="a port to fill in"),
    pytest.param("redis://h:s3cret", "host:port", id="password without an @"),
    pytest.param("redis://:s3cret/x@h", "host:port", id="slash in the password"),
    pytest.param("redis://:12?s3cret@h", "only db, username and password", id="question mark in the password"),
    pytest.param("redis://:s3cret#x@h", "%23", id="hash in the password"),
    pytest.param("redis://h/abc", "number of the database", id="database that is no number"),
    pytest.param("redis://h/-1", "number of the database", id="negative database"),
    pytest.param("redis://h/" + "9" * 5000, "number of the database", id="database of many digits"),
    pytest.param("redis://h?db=x", "number of the database", id="database in the query that is no number"),
    pytest.param("redis://h/1?db=2", "db in the query differs", id="two databases"),
    pytest.param("redis://:s3cret@h?password=t", "password in the query differs", id="two passwords"),
    pytest.param("redis://h?socket_timeout=1", "give socket_timeout as arguments", id="an option in the query"),
    pytest.param("redis://:1?s3cret_a@h", "give other options as arguments", id="what may be a password"),
    pytest.param("unix://run/redis.sock", "whole path", id="socket with a relative path"),
    pytest.param("unix://", "whole path", id="socket without a path"),
    pytest.param("redis://a b", "host:port", id="a blank in the host"),
]


@pytest.mark.parametrize(("url", "right"), REFUSED)
def test_refused(url: object, right: str) -> None:
    """A URL that cannot be connected to is refused in one sentence, which shows no secret."""
    with pytest.raises(ConfigurationError) as refusal:
        parse_redis_url(url)
    assert right in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


def test_names_the_variable() -> None:
    """The error names the environment variable that the URL came from."""
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL must be the URL of a server"):
        parse_redis_url(None, "REDIS_URL")
    with pytest.raises(ConfigurationError, match=r"^REDIS_URL='redis://h/abc' cannot be used"):
        parse_redis_url("redis://h/abc", "REDIS_URL")


@given(
    st.text(alphabet=st.sampled_from("@/?#:=&%[],. \n"), max_size=12),
    st.text(alphabet=st.sampled_from("@/?#:=&%[],. \n"), max_size=12),
    st.sampled_from(["redis://", "redis+sentinel://", "unix://", "http://", ""]),
)
def test_shown_without_a_secret(before: str, after: str, scheme: str) -> None:
    """However wrongly a password stands before an @, what is shown of the URL does not have it."""
    assert "s3cret" not in shown(f"{scheme}:{before}s3cret{after}@host")


@given(
    st.text(alphabet=st.sampled_from("@/?#:=&%[],._${} \n1"), max_size=12),
    st.text(alphabet=st.sampled_from("@/?#:=&%[],._${} \n1"), max_size=12),
    st.sampled_from(["redis://", "redis+sentinel://", "unix://", "http://", ""]),
)
def test_refused_without_a_secret(before: str, after: str, scheme: str) -> None:
    """However wrongly a password stands before an @, no error has it."""
    try:
        parse_redis_url(f"{scheme}:{before}s3cret{after}@host")
    except ConfigurationError as error:
        assert "s3cret" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("in_url", "as_option", "one"),
    [(None, None, None), ("a", None, "a"), (None, "a", "a"), ("a", "a", "a"), (0, 0, 0), (None, 0, 0)],
)
def test_agreed(in_url: object, as_option: object, one: object) -> None:
    """What stands in the URL and is given as an option too must be the same; 0 is given, None is not."""
    assert agreed("db", in_url, as_option) == one


def test_not_agreed() -> None:
    """Two values for one thing are refused, and neither is shown."""
    with pytest.raises(ConfigurationError, match=r"^password differs from the one in the URL") as refusal:
        agreed("password", "s3cret", "s3cret2")
    assert "s3cret" not in str(refusal.value)
