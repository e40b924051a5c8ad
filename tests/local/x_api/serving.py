"""The stand-in for X with posts that are all alike, for tests of what is around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from local.posts import Post
from local.x_api.server import XApi
from local.x_api.settings import Settings

LINE = b'{"data":{"id":"1","text":"water"}}'


class Same:
    """A source that gives the same post for ever."""

    takes_rules = False

    def take(self, now_ms: int) -> Post:
        return Post("1", "author", LINE, 0, None)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[XApi, aiohttp.ClientSession]]:
    """Serve one matching rule and no posts, unless the settings say otherwise."""
    async with XApi(Same(), Settings(**{"limit": 0} | settings)) as api:
        api.rules.change({"add": [{"value": "water"}]}, dry_run=False, delete_all=False)
        async with aiohttp.ClientSession(api.url, headers={"authorization": "Bearer good"}) as http:
            yield api, http
