"""
X's refusals, word for word where they were recorded, and the lines that end a stream.

Three very different answers share status 429: told apart by their bodies only. Types have the host api.twitter.com, as
recorded; X has used api.x.com too.

Recorded: 402, 403, 409, TooManyConnections, Too Many Requests, error code 88, UsageCapExceeded,
ProvisioningSubscription, the refusal of wrong keys, operational-disconnect. Put together from the documentation: 400,
401, the daily cap and 5xx.
"""

import json
from typing import NamedTuple

_PROBLEMS = "https://api.twitter.com/2/problems/"
JSON_TYPE = "application/json; charset=utf-8"


class Refusal(NamedTuple):
    """An HTTP answer other than 200: its status, body, content type, and where a redirect points."""

    status: int
    body: str
    content_type: str = JSON_TYPE
    location: str = ""


def _problem(status: int, problem: str, **fields: object) -> Refusal:
    return Refusal(status, json.dumps(fields | {"type": _PROBLEMS + problem}, separators=(",", ":")))


def _blank(status: int, title: str) -> Refusal:
    fields = {"title": title, "detail": title, "type": "about:blank", "status": status}
    return Refusal(status, json.dumps(fields, separators=(",", ":")))


def _connection_issue(status: int, issue: str, detail: str) -> Refusal:
    return _problem(status, "streaming-connection", title="ConnectionException", detail=detail, connection_issue=issue)


_HTML = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"

REFUSALS = {
    "invalid_request": _problem(
        400,
        "invalid-request",
        errors=[{"parameters": {}, "message": "The request is not valid"}],
        title="Invalid Request",
        detail="One or more parameters to your request was invalid.",
    ),
    "unauthorized": _blank(401, "Unauthorized"),
    "credits_depleted": _problem(
        402,
        "credits",
        title="CreditsDepleted",
        detail="Your enrolled account does not have any credits to fulfill this request.",
    ),
    "client_forbidden": _problem(
        403,
        "client-forbidden",
        client_id="1",
        detail=(
            "When authenticating requests to the Twitter API v2 endpoints, you must use keys and tokens from a Twitter "
            "developer App that is attached to a Project. You can create a project via the developer portal."
        ),
        registration_url="https://developer.twitter.com/en/docs/projects/overview",
        title="Client Forbidden",
        required_enrollment="Appropriate Level of API Access",
        reason="client-not-enrolled",
    ),
    "wrong_keys": Refusal(
        403,
        '{"errors":[{"code":99,"message":"Unable to verify your credentials","label":"authenticity_token_error"}]}',
    ),
    "no_rules": _connection_issue(
        409,
        "RuleConfigurationIssue",
        "You must define rules using the POST /2/tweets/search/stream/rules endpoint before connecting to "
        "filtered stream.",
    ),
    "too_many_connections": _connection_issue(
        429, "TooManyConnections", "This stream is currently at the maximum allowed connection limit."
    ),
    "rate_limit": _blank(429, "Too Many Requests"),
    "rate_limit_code_88": Refusal(429, '{"errors":[{"code":88,"message":"Rate limit exceeded"}]}'),
    "usage_cap": _problem(
        429,
        "usage-capped",
        title="UsageCapExceeded",
        period="Monthly",
        scope="Product",
        detail="Usage cap exceeded: Monthly product cap",
    ),
    # The other period and scope that X's schema knows.
    "usage_cap_daily": _problem(
        429,
        "usage-capped",
        title="UsageCapExceeded",
        period="Daily",
        scope="Account",
        detail="Usage cap exceeded: Daily account cap",
    ),
    # The status was not recorded with this body.
    "provisioning": _connection_issue(
        403,
        "ProvisioningSubscription",
        "Your subscription change is currently being provisioned, please try again in a minute.",
    ),
    # Never seen; a client must not follow it with its token.
    "redirect": Refusal(307, _HTML.format("307 Temporary Redirect"), "text/html", "https://elsewhere.invalid/"),
    "internal_error": _blank(500, "Internal Server Error"),
    "bad_gateway_html": Refusal(502, _HTML.format("502 Bad Gateway"), "text/html"),
    "service_unavailable": _blank(503, "Service Unavailable"),
    "service_unavailable_html": Refusal(503, _HTML.format("503 Service Temporarily Unavailable"), "text/html"),
    "gateway_timeout": _blank(504, "Gateway Timeout"),
}

_DISCONNECTS = {
    "OperationalDisconnect": "This stream has been disconnected for operational reasons.",
    "UpstreamOperationalDisconnect": "This stream has been disconnected upstream for operational reasons.",
}
# The other types that X's schema lists; their details were never recorded.
DISCONNECT_TYPES = (
    *_DISCONNECTS,
    "ForceDisconnect",
    "UpstreamUncleanDisconnect",
    "SlowReader",
    "InternalError",
    "ClientApplicationStateDegraded",
    "InvalidRules",
)


def disconnect_line(disconnect_type: str) -> bytes:
    """Return the line, without its CR LF, that X sends before it closes a stream of its own accord."""
    error = {
        "title": "operational-disconnect",
        "disconnect_type": disconnect_type,
        "detail": _DISCONNECTS.get(disconnect_type, _DISCONNECTS["OperationalDisconnect"]),
        "type": f"{_PROBLEMS}operational-disconnect",
    }
    return json.dumps({"errors": [error]}, separators=(",", ":")).encode()
