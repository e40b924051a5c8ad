"""
The local Kinesis' own questions and orders over HTTP: faults, ledger, statistics. They need no signature.

    POST   /admin/faults    {"kind": ..., ...} puts a fault in force for all streams, see `local.kinesis.faults`
    DELETE /admin/faults    ends all faults
    GET    /admin/ledger    `?stream=`: what each shard took and kept
                            `?stream=&shard=0&offset=0`: a page of its records in order, from the offset on
    GET    /admin/stats     refused requests by code, and the records of all streams
    GET    /healthz         whether it answers

Offsets count the records of a shard from its first one on, also those that are no longer kept. `next` of a page is the
offset of the next one, or null after the last.
"""

from base64 import b64encode
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web

from local.kinesis.account import Account
from local.kinesis.faults import Fault
from local.kinesis.shards import Record, Shard
from local.kinesis.stream import Stream

PAGE_BYTES = 4 << 20
Reply = dict[str, Any]


class Admin:
    """The handlers; `clock` gives the time in seconds."""

    def __init__(self, account: Account, clock: Callable[[], float]) -> None:
        self._account = account
        self._clock = clock

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Put the handlers in their places."""
        router.add_post("/admin/faults", self._add_fault)
        router.add_delete("/admin/faults", self._clear_faults)
        router.add_get("/admin/ledger", self._ledger)
        router.add_get("/admin/stats", self._stats)
        router.add_get("/healthz", self._health)

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            fault = msgspec.json.decode(await request.read(), type=Fault)
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        for stream in self._account.streams.values():
            stream.faults.add(fault, self._clock())
        return web.json_response({})

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        for stream in self._account.streams.values():
            stream.faults.clear()
        return web.json_response({})

    async def _ledger(self, request: web.Request) -> web.Response:
        self._account.tidy(self._clock())
        stream = self._account.streams.get(request.query.get("stream", ""))
        if stream is None:
            raise web.HTTPNotFound(text=f"?stream= is one of {', '.join(self._account.streams)}")
        if "shard" not in request.query:
            return web.json_response({"shards": [_shard(shard) for shard in stream.map.shards]})
        index, offset = _number(request, "shard"), _number(request, "offset")
        if index >= len(stream.map.shards):
            raise web.HTTPNotFound(text=f"{stream.name} has no shard {index}")
        return web.json_response(_page(stream, stream.map.shards[index], offset))

    async def _stats(self, _request: web.Request) -> web.Response:
        account = self._account
        account.tidy(self._clock())
        return web.json_response(
            {"refused": account.refused, "streams": {name: _sums(one) for name, one in account.streams.items()}}
        )

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not text.isdecimal():
        raise web.HTTPBadRequest(text=f"{name} is a number from 0 on, not {text}")
    return int(text)


def _counts(shard: Shard) -> dict[str, int]:
    facts = shard.facts
    return {
        "accepted": facts.accepted,
        "bytes": facts.accepted_bytes,
        "throttled": facts.throttled,
        "failed": facts.failed,
        "trimmed": shard.trimmed,
    }


def _sums(stream: Stream) -> Reply:
    counts = [_counts(shard) for shard in stream.map.shards]
    return {name: sum(count[name] for count in counts) for name in counts[0]}


def _shard(shard: Shard) -> Reply:
    facts = shard.facts
    return {
        "shard": shard.index,
        "open": shard.is_open,
        "parents": facts.parents,
        "starting_hash_key": facts.start,
        "ending_hash_key": facts.end,
        **_counts(shard),
    }


def _page(stream: Stream, shard: Shard, offset: int) -> Reply:
    start = max(offset, shard.trimmed)
    records: list[Record] = []
    size = 0
    for record in islice(shard.records, start - shard.trimmed, None):
        records.append(record)
        size += record.size
        if size >= PAGE_BYTES:
            break
    end = start + len(records)
    return {
        "next": end if end < shard.facts.accepted else None,
        "records": [
            {
                "sequence_number": stream.sequence_number(record.position, record.shard),
                "partition_key": record.partition_key,
                "explicit_hash_key": record.explicit_hash_key,
                "data": b64encode(record.data).decode(),
            }
            for record in records
        ],
    }
