"""
The rest of X's API that a stream consumer needs: rules, connections, usage, and the exchange of keys for a token.

The Connections API shows what X believes: a ghost is active until it fades, and can be killed. X documents one
disconnect reason, operator_disconnect; the others are the names of our endings.
"""

import base64
import binascii
import json
import secrets
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from local.x_api.answers import JSON_TYPE
from local.x_api.endings import Ending
from local.x_api.endpoints import ENDPOINTS
from local.x_api.feed import Feed
from local.x_api.gate import Gate, refused
from local.x_api.ledger import ConnectionRecord, Ledger
from local.x_api.rulebook import Answer, RuleBook, invalid_request
from local.x_api.settings import Settings

# Posts of pay-per-use.
_MONTHLY_CAP = 3_000_000


class Account:
    """
    The routes.

    Args:
        settings: of the stand-in.
        gate: checks tokens and knows the ghosts.
        ledger: knows the connections and what was delivered.
        feed: knows the open streams.
        rules: of the app.
    """

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger, feed: Feed, rules: RuleBook) -> None:
        self._settings, self._gate, self._ledger, self._feed, self._rules = settings, gate, ledger, feed, rules

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for an application."""
        return [
            web.get("/2/tweets/search/stream/rules", self._get_rules),
            web.post("/2/tweets/search/stream/rules", self._post_rules),
            web.get("/2/tweets/search/stream/rules/counts", self._get_rule_counts),
            web.get("/2/connections", self._get_connections),
            web.delete("/2/connections", self._delete_connections),
            web.delete("/2/connections/{endpoint}", self._delete_connections),
            web.get("/2/usage/tweets", self._get_usage),
            web.post("/oauth2/token", self._post_token),
        ]

    async def _get_rules(self, request: web.Request) -> web.Response:
        entry = self._gate.enter(request, "GET rules")
        size = request.query.get("max_results", "1000")
        if not (size.isdecimal() and 1 <= int(size) <= 1000):
            message = f"The `max_results` query parameter value [{size}] is not between 1 and 1000"
            return json_response(invalid_request("max_results", size, message), entry.headers)
        ids = [one for part in request.query.getall("ids", []) for one in part.split(",") if one]
        return json_response(
            self._rules.listed(ids, int(size), request.query.get("pagination_token", "")), entry.headers
        )

    async def _post_rules(self, request: web.Request) -> web.Response:
        entry = self._gate.enter(request, "POST rules")
        try:
            body = await request.json() if request.can_read_body else None
        except ValueError:
            return json_response(invalid_request("body", "", "The body is not JSON"), entry.headers)
        dry_run, delete_all = (_is_true(request.query.get(name)) for name in ("dry_run", "delete_all"))
        return json_response(self._rules.change(body, dry_run=dry_run, delete_all=delete_all), entry.headers)

    async def _get_rule_counts(self, request: web.Request) -> web.Response:
        entry = self._gate.enter(request, "GET rules")
        return json_response(self._rules.counts(), entry.headers)

    async def _get_connections(self, request: web.Request) -> web.Response:
        entry = self._gate.enter(request, "connections")
        status = request.query.get("status", "active")
        size = request.query.get("max_results", "10")
        if not (size.isdecimal() and 1 <= int(size) <= 100):
            message = f"The `max_results` query parameter value [{size}] is not between 1 and 100"
            return json_response(invalid_request("max_results", size, message), entry.headers)
        if status not in {"active", "inactive", "all"}:
            message = f"The `status` query parameter value [{status}] is not one of [active,inactive,all]"
            return json_response(invalid_request("status", status, message), entry.headers)
        endpoints = {one for part in request.query.getall("endpoints", []) for one in part.split(",")}
        found = [
            record
            for record in reversed(self._ledger.connections)
            if (status == "all" or self._gate.is_active(record) == (status == "active"))
            and (not endpoints or record.endpoint in endpoints)
        ]
        token = request.query.get("pagination_token", "0")
        start = int(token) if token.isdecimal() else 0
        shown = [self._connection(record) for record in found[start : start + int(size)]]
        meta: dict[str, Any] = {"result_count": len(shown)}
        if start + int(size) < len(found):
            meta["next_token"] = str(start + int(size))
        return json_response(Answer(200, ({"data": shown} if shown else {}) | {"meta": meta}), entry.headers)

    def _connection(self, record: ConnectionRecord) -> dict[str, Any]:
        shown = {
            "id": record.uuid,
            "endpoint_name": record.endpoint,
            "client_ip": record.client_ip,
            "connected_at": _iso(record.connected_at),
        }
        if record.disconnected_at is not None and not self._gate.is_active(record):
            # X documents one reason, operator_disconnect; the others are the names of our endings.
            reason = "operator_disconnect" if record.ending == Ending.KILLED else str(record.ending)
            shown |= {"disconnected_at": _iso(record.disconnected_at), "disconnect_reason": reason}
        return shown

    async def _delete_connections(self, request: web.Request) -> web.Response:
        entry = self._gate.enter(request, "connections")
        active = {record.uuid: record for record in self._ledger.connections if self._gate.is_active(record)}
        endpoint = request.match_info.get("endpoint")
        if endpoint is not None:
            known = ["all", *(one.name for one in ENDPOINTS)]
            if endpoint not in known:
                message = f"The `endpoint_id` value [{endpoint}] is not one of [{','.join(known)}]"
                return json_response(invalid_request("endpoint_id", endpoint, message), entry.headers)
            wanted = [one.uuid for one in active.values() if endpoint in {"all", one.endpoint}]
        else:
            try:
                wanted = [str(one) for one in (await request.json())["uuids"]]
            except (ValueError, KeyError, TypeError):
                wanted = []
            if not 1 <= len(wanted) <= 100:
                return json_response(invalid_request("uuids", "", "The body must hold 1 to 100 uuids"), entry.headers)
        results = []
        for one in wanted:
            if one in active:
                self._gate.lay_ghost(active[one])
                self._kill(active[one])
                results.append({"uuid": one, "success": True})
            else:
                results.append({"uuid": one, "success": False, "error_message": "Connection not found"})
        killed = sum(result["success"] is True for result in results)
        counts = {"successful_kills": killed, "failed_kills": len(results) - killed}
        return json_response(Answer(200, {"data": counts | {"results": results}}), entry.headers)

    def _kill(self, record: ConnectionRecord) -> None:
        for stream in list(self._feed.streams):
            if stream.record is record:
                stream.end(Ending.KILLED)

    async def _get_usage(self, request: web.Request) -> web.Response:
        entry = self._gate.enter(request, "usage")
        cap = self._settings.usage_cap or _MONTHLY_CAP
        used = self._ledger.counts["written"]
        data = {"cap_reset_day": 1, "project_cap": str(cap), "project_id": "1", "project_usage": str(used)}
        return json_response(Answer(200, {"data": data}), entry.headers)

    async def _post_token(self, request: web.Request) -> web.Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            key, _, secret = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            key = secret = ""
        pair = f"{unquote(key)}:{unquote(secret)}"
        form = await request.post()
        right = key and secret and self._settings.keys in {None, pair}
        if scheme.lower() != "basic" or not right or form.get("grant_type") != "client_credentials":
            raise refused("wrong_keys", {})
        token = self._settings.tokens[0] if self._settings.tokens else secrets.token_urlsafe(60)
        return json_response(Answer(200, {"token_type": "bearer", "access_token": token}), {})


def json_response(answer: Answer, headers: dict[str, str]) -> web.Response:
    """Return an answer as JSON, compact as X writes it."""
    text = json.dumps(answer.body, ensure_ascii=False, separators=(",", ":"))
    return web.Response(text=text, status=answer.status, headers=headers | {"content-type": JSON_TYPE})


def _is_true(value: str | None) -> bool:
    return (value or "").lower() == "true"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
