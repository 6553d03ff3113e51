"""Variants are told apart by the fields that Vary names, and by nothing else (RFC 9111 §4.1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app_cache.rules.variants import Variant, announced, variant, vary_fields
from tests.conformance.oracle import alike
from tests.rules.samples import fields
from tests.timing import assert_within


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        pytest.param([], set(), id="absent"),
        pytest.param(["Vary:"], set(), id="empty"),
        pytest.param(["Vary: Accept-Language, X-A"], {"accept-language", "x-a"}, id="two in any case"),
        pytest.param(["Vary: a, A , ,b,"], {"a", "b"}, id="repeated and empty"),
        pytest.param(["Vary: a", "vary: b"], {"a", "b"}, id="two lines"),
        pytest.param(["Vary: *"], None, id="star"),
        pytest.param(["Vary: a, *"], None, id="star among others"),
        pytest.param(["Vary: a", "Vary: *"], None, id="star in another line"),
        pytest.param(["Vary: x-*"], {"x-*"}, id="a star in a name"),
        pytest.param(["Vary: a, \xc4"], None, id="what is no name"),
        pytest.param(["Vary: a b"], None, id="two names without a comma"),
    ],
)
def test_vary_fields(lines: list[str], names: set[str] | None) -> None:
    """Vary is a list of field names in any case, or always fails to match with a star among them."""
    assert vary_fields(fields(*lines)) == names


@pytest.mark.parametrize(
    ("vary", "one", "other"),
    [
        pytest.param({"x-a"}, [], [], id="absent in both"),
        pytest.param({"x-a"}, ["X-A: 1"], ["x-a: 1"], id="case of the name"),
        pytest.param({"x-a"}, ["X-A: 1", "X-B: 1"], ["X-B: 2", "X-A: 1"], id="another field"),
        pytest.param({"x-a"}, ["X-A:  1 "], ["X-A: 1"], id="outer blanks"),
        pytest.param({"accept"}, ["Accept: a,b"], ["Accept: a , b"], id="blanks in a list"),
        pytest.param(
            {"accept-language"}, ["Accept-Language: DE"], ["Accept-Language: de"], id="case of a language"
        ),
        pytest.param({"accept"}, ["Accept: a/b;q=1.0"], ["Accept: A/B"], id="a weight of one"),
        pytest.param({"accept"}, ["Accept: a/b; x=1 ;q=0"], ["Accept: A/b;x=1;q=0"], id="blanks in parameters"),
        pytest.param({"x-forwarded-for"}, ["X-Forwarded-For: a,b"], ["X-Forwarded-For: a, b"], id="other lists"),
    ],
)
def test_same_variant(vary: set[str], one: list[str], other: list[str]) -> None:
    """Two requests select one variant if no handler tells apart what they send."""
    assert variant(frozenset(vary), fields(*one)) == variant(frozenset(vary), fields(*other))


@pytest.mark.parametrize(
    ("vary", "one", "other"),
    [
        pytest.param({"x-a"}, ["X-A: 1"], ["X-A: 2"], id="value"),
        pytest.param({"x-a"}, ["X-A: a"], ["X-A: A"], id="case of the value"),
        pytest.param({"x-a"}, ["X-A:"], [], id="empty and absent"),
        pytest.param({"x-a"}, ["X-A: 1"], [], id="there and absent"),
        pytest.param({"x-a"}, ["X-A: 1", "X-A: 2"], ["X-A: 2", "X-A: 1"], id="order of lines"),
        pytest.param({"x-a"}, ["X-A: 1", "X-A: 2"], ["X-A: 1, 2"], id="lines and one line"),
        pytest.param({"accept"}, ["Accept: a", "Accept: b"], ["Accept: a, b"], id="a list in lines"),
        pytest.param({"accept"}, ["Accept: a,,b"], ["Accept: a,b"], id="an empty member"),
        pytest.param(
            {"x-forwarded-for"}, ["X-Forwarded-For: ,a"], ["X-Forwarded-For: a"], id="an empty first one"
        ),
        pytest.param({"accept"}, ["Accept: a;q=0.5, b"], ["Accept: b, a;q=0.5"], id="order of weights"),
        pytest.param({"accept"}, ["Accept: a;q=0.5;x=1"], ["Accept: a;x=1;q=0.5"], id="order of parameters"),
        pytest.param({"accept"}, ["Accept: a;q=1;q=0"], ["Accept: a;q=0"], id="two weights"),
        pytest.param({"x-a", "x-b"}, ["X-A: 1", "X-B: 2"], ["X-A: 2", "X-B: 1"], id="values swapped"),
        pytest.param(
            {"x-tenant"}, ["X-Tenant: acme"], ["X-Tenant: acme,"], id="a comma more, where no list is known"
        ),
        pytest.param({"user-agent"}, ["User-Agent: (a, b)"], ["User-Agent: (a,b)"], id="a blank in a comment"),
        pytest.param({"accept"}, ["Accept: a, b"], ["Accept: b, a"], id="order within a weight"),
        pytest.param({"accept"}, ["Accept: a;q=0.3, b;q=0.3"], ["Accept: b;q=0.3, a;q=0.3"], id="order below one"),
        pytest.param({"accept"}, ["Accept: a;q=0.3, b"], ["Accept: b;q=0.3, a"], id="weights swapped"),
        pytest.param({"accept"}, ["Accept: a;q=2, b"], ["Accept: b, a;q=2"], id="a weight that is none"),
        pytest.param({"accept"}, ["Accept: a;x=A"], ["Accept: a;x=a"], id="case of a parameter"),
        pytest.param({"accept"}, ["Accept:"], [], id="an empty list and none"),
        pytest.param({"te"}, ["TE: a;q=0.3, b"], ["TE: b, a;q=0.3"], id="order of another list"),
        pytest.param({"accept"}, ['Accept: a;x="b, c"'], ['Accept: a;x="b,c"'], id="a blank in quotes"),
    ],
)
def test_other_variant(vary: set[str], one: list[str], other: list[str]) -> None:
    """Two requests select two variants if what they send differs, by as little as a handler can see."""
    assert variant(frozenset(vary), fields(*one)) != variant(frozenset(vary), fields(*other))


_weights = st.sampled_from(
    ["", ";q=1", "; q=1.000", ";Q=0.5", " ;\tq=0.50", ";q=0", ";q=0.5;q=1", ";q=2", ";q=x", ";x=q"]
)
_members = st.tuples(st.sampled_from(["a", "A", "b", "c;x=1", "c ; x=1", '"a, b"', "*", ""]), _weights).map(
    "".join
)
_lines = st.lists(st.lists(_members, max_size=4).map(",".join), max_size=2)


@settings(max_examples=300)
@given(st.sampled_from(["accept", "accept-language", "te", "x-a"]), _lines, _lines)
def test_variant_by_meaning(name: str, one: list[str], other: list[str]) -> None:
    """Two requests select one variant just if a slow reading of both finds the same."""
    same = selected(name, one) == selected(name, other)
    assert same is alike(name, [line.strip(" \t") for line in one], [line.strip(" \t") for line in other])


@settings(max_examples=300)
@given(st.sampled_from(["accept", "accept-encoding", "via"]), _lines)
def test_form_of_a_form(name: str, lines: list[str]) -> None:
    """What is in its one form stays as it is."""
    ((_, form),) = selected(name, lines)
    assert form is None or selected(name, form.split("\n")) == ((name, form),)


def selected(name: str, lines: list[str]) -> Variant:
    """Return the variant by one field that has *lines*."""
    return variant(frozenset({name}), tuple((name.encode(), line.encode()) for line in lines))


def test_names_of_a_variant() -> None:
    """A variant names all its fields, sorted, so that one field's value is never taken for another's."""
    assert variant(frozenset({"b", "a", "c"}), fields("C: 1", "B: 2")) == (("a", None), ("b", "2"), ("c", "1"))


@given(
    st.frozensets(st.text(st.characters(max_codepoint=255), max_size=3), max_size=3),
    st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=9)), max_size=4),
)
def test_variant_of_anything(names: frozenset[str], lines: list[tuple[bytes, bytes]]) -> None:
    """No field raises, whatever Vary names."""
    headers = tuple(lines)
    vary_fields((*headers, *((b"vary", name.encode("latin-1")) for name in names)))
    variant(names, headers)


@pytest.mark.alone
@pytest.mark.parametrize(
    "value",
    [
        pytest.param('"a" , ' * 33_000, id="quotes"),
        pytest.param("a;q=0.5," * 25_000, id="weights"),
        pytest.param("a" + ";" * 200_000, id="parameters"),
        pytest.param("a;q=0." + "0" * 200_000, id="digits"),
    ],
)
def test_time(value: str) -> None:
    """A list of 200 KB is brought to its form in time in proportion to it: some 10 ms, at most 500 here."""
    headers = fields(f"Accept: {value}", f"Vary: {value}")
    assert_within(0.5, variant, frozenset({"accept"}), headers)
    assert_within(0.5, vary_fields, headers)


@pytest.mark.parametrize(
    ("lines", "names", "vary"),
    [
        pytest.param([], ("x-a", "x-b"), {"x-a", "x-b"}, id="no Vary"),
        pytest.param(["Vary: Accept"], ("x-a",), {"accept", "x-a"}, id="added"),
        pytest.param(["Vary: X-A, b"], ("x-a",), {"x-a", "b"}, id="already there"),
        pytest.param(["Vary: *"], ("x-a",), None, id="a star says more"),
        pytest.param(["Vary: a"], (), {"a"}, id="nothing to add"),
    ],
)
def test_announced(lines: list[str], names: tuple[str, ...], vary: set[str] | None) -> None:
    """The headers that join a key are in Vary, beside those that the response names."""
    told = announced(fields(*lines), names)
    assert vary_fields(told) == vary
    assert told[: len(lines)] == fields(*lines)


def test_announced_once() -> None:
    """What Vary has already is not said again."""
    headers = fields("Vary: x-a")
    assert announced(headers, ("x-a",)) == headers
