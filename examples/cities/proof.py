"""A few requests to the running application that show, in a table, what its cache does."""

from __future__ import annotations

import time
from typing import Any

import httpx

PARIS = "/cities/2988507"
SEARCH = "/cities/search?q=paris"
MISS, HIT, NOTHING = "app-cache; fwd=uri-miss; stored", "app-cache; hit; ttl=", ""
ROW = "{:<18} {:<48} {:>6} {:>7}  {}"


async def prove(url: str, admin_token: str) -> list[str]:
    """Send the requests, print what comes, and return a sentence for each thing that is not as it should be."""
    # trust_env: what a proxy of the environment reaches is not this machine.
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        health = await client.get("/admin/health/cache")
        if health.status_code != 200:
            return [f"The cache cannot be shown at work: {health.json()['error']}. Is REDIS_URL right?"]
        proof = Proof(client, admin_token)
        await proof.invalidate("/*")  # what an earlier run left in Redis
        print()
        print(ROW.format("", "request", "status", "ms", "Cache-Status"))
        await proof.run()
    return proof.failures


class Proof:
    """The requests, one after the other."""

    def __init__(self, client: httpx.AsyncClient, admin_token: str) -> None:
        self.client = client
        self.admin_token = admin_token
        self.failures: list[str] = []

    async def run(self) -> None:
        """Send them and print a row for each."""
        first = await self.row("first request", "GET", PARIS, MISS)
        hit = await self.row("hit", "GET", PARIS, HIT)
        self.expect("a hit has the body of the first answer", hit.content == first.content)
        known = {"If-None-Match": first.headers["ETag"]}
        unchanged = await self.row("hit, client has it", "GET", PARIS, HIT, headers=known)
        self.expect("a client that has the body gets a 304", unchanged.status_code == 304)
        await self.row("first request", "GET", SEARCH, MISS)
        await self.row("hit", "GET", SEARCH, HIT)

        population = first.json()["population"] + 1
        await self.row("update", "PATCH", PARIS, NOTHING, json={"population": population})
        after = await self.row("after", "GET", PARIS, MISS)
        self.expect("an update is seen at once", after.json()["population"] == population)
        listed = await self.row("after", "GET", SEARCH, MISS)
        self.expect("an update is seen at once in lists", f'"population":{population},' in listed.text)
        await self.row("hit", "GET", SEARCH, HIT)

        await self.invalidate("/cities/*", "invalidate")
        await self.row("after", "GET", SEARCH, MISS)
        await self.row("hit", "GET", SEARCH, HIT)

    async def invalidate(self, pattern: str, name: str | None = None) -> None:
        """Invalidate by *pattern*, with the admin token; print a row if there is a *name*."""
        path = f"/admin/invalidate-cache?pattern={pattern}"
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        if name is None:
            await self.client.post(path, headers=headers)
        else:
            await self.row(name, "POST", path, NOTHING, headers=headers)

    async def row(self, name: str, method: str, path: str, expected: str, **options: Any) -> httpx.Response:
        """Send a request, print a row for it, and return the answer, whose Cache-Status begins as *expected*."""
        begun = time.perf_counter()
        response = await self.client.request(method, path, **options)
        ms = (time.perf_counter() - begun) * 1000
        status = response.headers.get("Cache-Status", NOTHING)
        print(ROW.format(name, f"{method} {path}", response.status_code, f"{ms:.1f}", status or "-"), flush=True)
        self.expect(f"{method} {path} succeeds", response.status_code < 400)
        self.expect(f"{name}: Cache-Status begins {expected!r}", status.startswith(expected))
        return response

    def expect(self, what: str, holds: bool) -> None:
        """Note *what* as failed unless it *holds*."""
        if not holds:
            self.failures.append(f"It does not hold that {what}.")
