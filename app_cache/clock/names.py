"""What an invalidation may name an entry by: the names of its stamps, its paths, its keys. Nothing here awaits."""

from __future__ import annotations

import hashlib

import msgspec

from app_cache.keys import without_root


class Subject(msgspec.Struct, frozen=True):
    """What an invalidation may name an entry by.

    Args:
        tags: Its tags, those of its URL and key included.
        path: Its decoded path.
        logical_key: What a key generator of the application's own gave, or None.
        key: The key under which it is kept.
    """

    tags: frozenset[str]
    path: str
    logical_key: str | None
    key: str


def tag_stamp(tag: str) -> str:
    """Return the name of the stamp of a tag that the application chose."""
    return short("t:" + tag)


def url_stamp(path: str, origin: str = "") -> str:
    """Return the name of the stamp of a URL: its decoded *path*, at one *origin* or at any."""
    return short(f"u:{origin}{path}")


def root_stamp(root_path: str) -> str:
    """Return the name of the stamp of a root path; patterns match what has it without that path, too."""
    return short("r:" + root_path)


def group_stamp(origin: str, group: str) -> str:
    """Return the name of the stamp of a cache group, which has an origin of its own (RFC 9875 §2.1)."""
    return short(f"g:{origin} {group}")


def key_stamp(logical_key: str) -> str:
    """Return the name of the stamp of a logical key."""
    return short("k:" + logical_key)


def short(name: str) -> str:
    """Return *name*, or a digest of it where it is long or has characters that do not print."""
    if len(name) <= 200 and name.isprintable():
        return name
    return f"{name[:2]}#{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"


def is_url_stamp(name: str) -> bool:
    """Return whether *name* is that of a URL, or of a root path."""
    return name.startswith(("u:", "r:"))


def is_group_stamp(name: str) -> bool:
    """Return whether *name* is that of a cache group."""
    return name.startswith("g:")


def named_by(subject: Subject) -> list[str]:
    """Return what a pattern may match of *subject*: its path, that without each root path, its logical key."""
    roots = [tag.removeprefix("r:") for tag in subject.tags if tag.startswith("r:/")]
    paths = [subject.path, *(without_root(subject.path, root) for root in roots)]
    return paths if subject.logical_key is None else [*paths, subject.logical_key]


def other_url(asked: Subject, named: Subject) -> Subject | None:
    """Return a subject for the URL that *asked* is for; None if *named*, that of a record, is for that URL too.

    A key generator of the application's own may give two URLs one key: what either is invalidated by counts.
    """
    if asked.path == named.path and asked.tags <= named.tags:
        return None
    urls = frozenset(filter(is_url_stamp, asked.tags))
    if asked.path == named.path and urls <= named.tags:
        return None
    return Subject(urls, asked.path, named.logical_key, named.key)
