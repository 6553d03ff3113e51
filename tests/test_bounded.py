"""A mapping of bounded size."""

from __future__ import annotations

import pytest

from app_cache.bounded import Bounded


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        pytest.param("ab", "ab", id="fewer than it may keep"),
        pytest.param("abc", "abc", id="as many"),
        pytest.param("abcd", "bcd", id="the oldest goes"),
        pytest.param("abcad", "cad", id="one that was set again is the newest"),
        pytest.param("aaaa", "a", id="one again and again"),
    ],
)
def test_the_last_that_were_set(keys: str, kept: str) -> None:
    """It keeps the keys that were set last, in that order, each with its last value."""
    bounded: Bounded[str, int] = Bounded(3)
    for number, key in enumerate(keys):
        bounded[key] = number
    assert [*bounded.items()] == [(key, keys.rindex(key)) for key in kept]


def test_many() -> None:
    """Of many keys an eighth goes at once, the oldest, whenever one more than may be kept is set."""
    bounded: Bounded[int, int] = Bounded(16)
    for number in range(40):
        bounded[number] = number
        assert len(bounded) == (number + 1 if number < 16 else 15 + number % 2)
        assert [*bounded] == [*range(number + 1)][-len(bounded) :]


def test_what_another_thread_takes_out_meanwhile() -> None:
    """A key that is gone when its turn to go comes is no error."""
    bounded: Bounded[int, int] = Bounded(16)
    taken_out = [1]

    class Meddling(int):
        """Has another taken out when it is looked for."""

        def __hash__(self) -> int:
            if len(bounded) > 16 and taken_out:
                del bounded[taken_out.pop()]
            return super().__hash__()

    for number in range(17):
        bounded[Meddling(number)] = number
    assert not taken_out
    assert [*bounded] == [*range(2, 17)]


def test_reading_keeps_nothing() -> None:
    """What is read again and again goes when its turn comes."""
    bounded: Bounded[str, int] = Bounded(2)
    for number, key in enumerate("abc"):
        bounded[key] = number
        assert bounded.get("a") == (0 if key < "c" else None)


def test_what_was_taken_out_makes_room() -> None:
    """A key that was deleted or popped counts no more, and is taken in again like another."""
    bounded: Bounded[str, int] = Bounded(2)
    bounded["a"], bounded["b"] = 1, 2
    del bounded["a"]
    bounded["c"] = 3
    assert bounded.pop("b") == 2
    bounded["a"] = 4
    assert dict(bounded) == {"c": 3, "a": 4}


def test_cleared() -> None:
    """It is of use again once it was cleared."""
    bounded: Bounded[str, int] = Bounded(1)
    bounded["a"] = 1
    bounded.clear()
    bounded["b"] = 2
    assert dict(bounded) == {"b": 2}
