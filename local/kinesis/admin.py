"""
The local Kinesis' own questions and orders over HTTP: faults, ledger, statistics. They need no signature.

    POST   /admin/faults    put one fault or a list of them in force; `?stream=` for one stream only
    GET    /admin/faults    what is in force
    DELETE /admin/faults    end all faults
    GET    /admin/ledger    `?stream=`: what each shard took and kept
                            `?stream=&shard=0&offset=0&limit=1000`: its records in order, from the offset on
    GET    /admin/stats     requests, refusals, and the records of all streams
    GET    /healthz         whether it answers

Offsets count the records of a shard from its first one on, also those that are no longer kept. `next` of a page is the
offset of the next one, or null after the last.
"""

from base64 import b64encode
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec
import orjson
from aiohttp import web

from local.kinesis.account import Account
from local.kinesis.faults import Fault
from local.kinesis.shards import Record, Shard
from local.kinesis.stream import Stream

PAGE_RECORDS = 1000
PAGE_BYTES = 16 << 20
_FAULTS = msgspec.json.Decoder(list[Fault] | Fault)
Reply = dict[str, Any]


class Admin:
    """The handlers; `clock` gives the time in seconds."""

    def __init__(self, account: Account, clock: Callable[[], float]) -> None:
        self._account = account
        self._clock = clock

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Put the handlers in their places."""
        router.add_post("/admin/faults", self._add_faults)
        router.add_get("/admin/faults", self._list_faults)
        router.add_delete("/admin/faults", self._clear_faults)
        router.add_get("/admin/ledger", self._ledger)
        router.add_get("/admin/stats", self._stats)
        router.add_get("/healthz", self._health)

    async def _add_faults(self, request: web.Request) -> web.Response:
        try:
            faults = _FAULTS.decode(await request.read())
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        for stream in self._chosen(request):
            for fault in faults if isinstance(faults, list) else [faults]:
                stream.faults.add(fault, self._clock())
        return await self._list_faults(request)

    async def _list_faults(self, request: web.Request) -> web.Response:
        now = self._clock()
        return _json({stream.name: msgspec.to_builtins(stream.faults.active(now)) for stream in self._chosen(request)})

    async def _clear_faults(self, request: web.Request) -> web.Response:
        return _json({"ended": sum(stream.faults.clear() for stream in self._chosen(request))})

    async def _ledger(self, request: web.Request) -> web.Response:
        self._account.tidy(self._clock())
        if "stream" not in request.query:
            raise web.HTTPBadRequest(text="name the stream: ?stream=")
        (stream,) = self._chosen(request)
        if "shard" not in request.query:
            shards = [_shard(shard) for shard in stream.map.shards]
            return _json({"stream": stream.name, **_sums(stream), "shards": shards})
        index, offset = _number(request, "shard", 0), _number(request, "offset", 0)
        if index >= len(stream.map.shards):
            raise web.HTTPNotFound(text=f"{stream.name} has no shard {index}")
        return _json(_page(stream, stream.map.shards[index], offset, _number(request, "limit", PAGE_RECORDS)))

    async def _stats(self, _request: web.Request) -> web.Response:
        account = self._account
        account.tidy(self._clock())
        streams = {name: _sums(stream) for name, stream in account.streams.items()}
        return _json(
            {
                "requests": account.requests,
                "refused": account.refused,
                "injected": account.injected,
                "streams": streams,
            }
        )

    async def _health(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    def _chosen(self, request: web.Request) -> list[Stream]:
        name = request.query.get("stream")
        if name is None:
            return list(self._account.streams.values())
        if name not in self._account.streams:
            raise web.HTTPNotFound(text=f"there is no stream {name}")
        return [self._account.streams[name]]


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isdecimal():
        raise web.HTTPBadRequest(text=f"{name} is a number from 0 on, not {text}")
    return int(text)


def _counts(shard: Shard) -> Reply:
    facts = shard.facts
    return {
        "accepted": facts.accepted,
        "bytes": facts.accepted_bytes,
        "throttled": facts.throttled,
        "throttled_by_fault": facts.throttled_by_fault,
        "failed_by_fault": facts.failed_by_fault,
        "stored": len(shard.records),
        "trimmed": shard.trimmed,
        "trimmed_unread": facts.trimmed_unread,
    }


def _sums(stream: Stream) -> Reply:
    counts = [_counts(shard) for shard in stream.map.shards]
    return {name: sum(count[name] for count in counts) for name in counts[0]} | {"stored_bytes": stream.stored_bytes}


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


def _page(stream: Stream, shard: Shard, offset: int, limit: int) -> Reply:
    start = max(offset, shard.trimmed)
    records: list[Record] = []
    size = 0
    for record in islice(shard.records, start - shard.trimmed, start - shard.trimmed + limit):
        records.append(record)
        size += record.size
        if size >= PAGE_BYTES:
            break
    end = start + len(records)
    return {
        "stream": stream.name,
        "shard": shard.index,
        "offset": start,
        "next": end if end < shard.facts.accepted else None,
        "records": [
            {
                "sequence_number": stream.sequence_number(record.position, record.shard),
                "partition_key": record.partition_key,
                "explicit_hash_key": record.explicit_hash_key,
                "arrival": record.arrival,
                "size": record.size,
                "data": b64encode(record.data).decode(),
            }
            for record in records
        ],
    }


def _json(reply: Reply) -> web.Response:
    return web.Response(body=orjson.dumps(reply), content_type="application/json")
