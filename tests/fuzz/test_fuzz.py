"""The targets of the fuzzer, tried with what is known to be interesting and with what hypothesis thinks of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.rules import CORPUS
from tests.fuzz.targets import NAMES, TARGETS, one_input

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PIECES = (
    *(b"max-age=", b"no-store", b"private", b'="', b'"', b",", b" ", b"\t", b";", b"=", b"\\", b"W/", b"*", b"\n"),
    *(
        b"\n\n",
        b"60",
        b"0",
        b"99999999999999999999",
        b"-",
        b"q=0.5",
        b"bytes=",
        b"http://h/",
        b"//",
        b"..",
        b"[",
        b"]",
    ),
    *(b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994", b"\xff"),
    *(bytes([at]) for at in range(len(NAMES))),
)
texts = st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


@pytest.mark.parametrize("target", TARGETS, ids=lambda each: each.__name__)
@given(text=texts)
def test_any_bytes(target: Callable[[bytes], None], text: bytes) -> None:
    """No bytes make a rule raise, or say what makes no sense."""
    target(text)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda each: each.name)
def test_corpus(path: Path) -> None:
    """What was of interest once stays harmless, for every target."""
    data = path.read_bytes()
    one_input(data)
    for target in TARGETS:
        target(data[1:])
