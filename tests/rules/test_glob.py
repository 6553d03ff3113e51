"""Globs mean what they mean to Redis, and no pattern takes long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cache.errors import ConfigurationError
from app_cache.rules.glob import checked_pattern, compile_glob, fitted, literal_directory
from tests.timing import assert_within

ALPHABET = "ab-*?[]^\\/"
"""Few characters and all that mean something, so that patterns and texts meet often."""


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        pytest.param("", [""], ["a"], id="empty"),
        pytest.param("/users/7", ["/users/7"], ["/users/77", "/users", ""], id="literal"),
        pytest.param("*", ["", "a", "/a/b", "a\nb"], [], id="star"),
        pytest.param("/users/*", ["/users/", "/users/7/x"], ["/users", "x/users/"], id="star last"),
        pytest.param("*.css", [".css", "/a/b.css"], ["css", "a.css.gz"], id="star first"),
        pytest.param("a**b", ["ab", "axb"], ["a"], id="two stars are as one"),
        pytest.param("*a*b*", ["ab", "xaxbx", "aab"], ["ba", "a"], id="stars all over"),
        pytest.param("*ab", ["ab", "aab", "abab"], ["aba"], id="what follows a star may begin again"),
        pytest.param("a?c", ["abc", "a/c", "a\U0001f388c"], ["ac", "abbc"], id="question mark"),
        pytest.param("[ab]", ["a", "b"], ["", "c", "ab"], id="class"),
        pytest.param("[^ab]", ["c", "^", "\U0010ffff"], ["a", "b", ""], id="class negated"),
        pytest.param("[a-c]", ["a", "b", "c"], ["d", "-"], id="range"),
        pytest.param("[c-a]", ["a", "b", "c"], ["d", "-"], id="range backwards"),
        pytest.param("[a-cb-d]", ["a", "b", "c", "d"], ["e"], id="ranges that overlap"),
        pytest.param("[^a-cb-d]", ["e", "\x00"], ["a", "b", "c", "d"], id="ranges that overlap, negated"),
        pytest.param("[aa]", ["a"], ["b"], id="a member twice"),
        pytest.param("[a-]", ["a", "]"], ["-", "b-"], id="a range to the bracket"),
        pytest.param("[]", [], ["", "a", "[]"], id="class of none"),
        pytest.param("[^]", ["a", "]"], ["", "ab"], id="class of all"),
        pytest.param("[ab", ["a", "b"], ["[ab", "c"], id="class not closed"),
        pytest.param(r"[\]]", ["]"], ["\\"], id="bracket escaped in a class"),
        pytest.param(r"[\a-c]", ["a", "-", "c"], ["b", "\\"], id="an escaped character begins no range"),
        pytest.param(r"a\*", ["a*"], ["ab", "a", r"a\*"], id="star escaped"),
        pytest.param(r"\[a]", ["[a]"], ["a"], id="bracket escaped"),
        pytest.param("a\\", ["a\\"], ["a"], id="backslash last"),
        pytest.param("a.b|c(d)+$", ["a.b|c(d)+$"], ["axb"], id="what means something in a regex"),
    ],
)
def test_glob(pattern: str, matching: list[str], others: list[str]) -> None:
    """A glob matches a text as a whole, as Redis does."""
    matches = compile_glob(pattern)
    assert [text for text in matching + others if matches(text)] == matching


@given(st.text(ALPHABET, max_size=12), st.text(ALPHABET, max_size=12))
def test_as_redis_does(pattern: str, text: str) -> None:
    """Any pattern, malformed ones included, matches what a plain rewriting of Redis's own matcher does."""
    assert compile_glob(pattern)(text) is stringmatch(pattern, text)


@given(st.text(ALPHABET, max_size=40))
def test_escaped(text: str) -> None:
    """A text with a backslash before each character matches itself."""
    matches = compile_glob("".join(f"\\{char}" for char in text))
    assert matches(text)
    assert not matches(f"{text}a")


@pytest.mark.alone
@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("*a?" + "a?" * 125 + "*b", id="question marks"),
        pytest.param("*a" * 127 + "*b", id="stars"),
        pytest.param("/*" + "[^b]*" * 50 + "b", id="classes"),
        pytest.param("*" + "[a-z]" * 50 + "*b", id="ranges"),
        pytest.param("*" + "".join(map(chr, range(0x100, 0x1FD))) + "*b", id="many characters"),
    ],
)
@pytest.mark.parametrize("text", ["a" * 100_000, "/" + "ab/" * 33_333], ids=["one letter", "path"])
def test_time(pattern: str, text: str) -> None:
    """A pattern of 256 characters takes less than 1 ms for each KB of a text: 0.3 ms are measured (S25)."""
    assert_within(0.1, compile_glob(pattern), text)


def test_too_long() -> None:
    """A pattern of more than 256 characters is refused, and one of 256 is not."""
    assert compile_glob("*" * 256)("a")
    with pytest.raises(ConfigurationError, match="256 characters, not 257"):
        compile_glob("a" * 257)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        pytest.param("", "such as '/users/\\*', not ''$", id="empty"),
        pytest.param(7, "not 7$", id="number"),
        pytest.param("a" * 257, "256 characters, not 257", id="too long"),
    ],
)
def test_no_pattern(pattern: object, message: str) -> None:
    """What cannot be a pattern is refused, and what can is given back."""
    with pytest.raises(ConfigurationError, match=message):
        checked_pattern(pattern)
    assert checked_pattern("/users/*") == "/users/*"


@pytest.mark.parametrize(
    ("pattern", "directory"),
    [
        pytest.param("/users/*/orders", "/users/", id="star"),
        pytest.param("/users/7", "/users/", id="literal"),
        pytest.param("/users/", "/users/", id="directory"),
        pytest.param("/users*", "/", id="star within a name"),
        pytest.param("/a/b/c?d/e", "/a/b/", id="question mark"),
        pytest.param("/a/[b]/[cd]/", "/a/b/", id="a class of one is a literal"),
        pytest.param(r"/a\*/b/*", "/a*/b/", id="escaped"),
        pytest.param("*", "/", id="none"),
        pytest.param("user:*", "/", id="no slash"),
        pytest.param("", "/", id="empty"),
    ],
)
def test_literal_directory(pattern: str, directory: str) -> None:
    """A pattern widens to the longest directory that it spells out, or to the root."""
    assert literal_directory(pattern) == directory


def stringmatch(pattern: str, text: str) -> bool:
    """Return what Redis's ``stringmatchlen`` does, written down without care for time."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(stringmatch(pattern[1:], text[start:]) for start in range(len(text) + 1))
    if not text:
        return False
    if pattern[0] == "?":
        return stringmatch(pattern[1:], text[1:])
    if pattern[0] == "[":
        matched, rest = class_match(pattern[1:], text[0])
        return matched and stringmatch(rest, text[1:])
    if pattern[0] == "\\" and len(pattern) > 1:
        pattern = pattern[1:]
    return pattern[0] == text[0] and stringmatch(pattern[1:], text[1:])


def class_match(pattern: str, char: str) -> tuple[bool, str]:
    """Return whether *char* is in the class whose inside *pattern* begins with, and what follows the class."""
    negated = pattern[:1] == "^"
    pattern = pattern[negated:]
    matched = False
    while pattern and pattern[0] != "]":
        if pattern[0] == "\\" and len(pattern) > 1:
            matched |= pattern[1] == char
            pattern = pattern[2:]
        elif pattern[1:2] == "-" and len(pattern) > 2:
            first, last = sorted((pattern[0], pattern[2]))
            matched |= first <= char <= last
            pattern = pattern[3:]
        else:
            matched |= pattern[0] == char
            pattern = pattern[1:]
    return matched is not negated, pattern[1:]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        pytest.param("/p/" + "z" * 300, "/p/" + "z" * 300, "/p/a", id="a long literal"),
        pytest.param("/p/" + r"\*" * 200, "/p/" + "*" * 200, "/p/zz", id="escapes"),
        pytest.param("/p/[ab]" + "z" * 300, "/p/b" + "z" * 300, "/q/b", id="a class"),
        pytest.param("*" + "z" * 300, "a" + "z" * 300, None, id="a star at once"),
        pytest.param("/p/" + "\\\\" * 200, "/p/" + "\\" * 200, "/p/a", id="backslashes"),
    ],
)
def test_fitted(pattern: str, matching: str, other: str | None) -> None:
    """A pattern that is too long becomes one that matches all that it matched, and as little else as may be."""
    matches = compile_glob(fitted(pattern))
    assert matches(matching)
    assert other is None or not matches(other)
