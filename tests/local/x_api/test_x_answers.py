import json

import pytest

from local.x_api.answers import DISCONNECT_TYPES, REFUSALS, disconnect_line

# As recorded.
BODIES = {
    "no_rules": (
        '{"title":"ConnectionException","detail":"You must define rules using the POST /2/tweets/search/stream/rules'
        ' endpoint before connecting to filtered stream.","connection_issue":"RuleConfigurationIssue",'
        '"type":"https://api.twitter.com/2/problems/streaming-connection"}'
    ),
    "too_many_connections": (
        '{"title":"ConnectionException",'
        '"detail":"This stream is currently at the maximum allowed connection limit.",'
        '"connection_issue":"TooManyConnections","type":"https://api.twitter.com/2/problems/streaming-connection"}'
    ),
    "rate_limit": '{"title":"Too Many Requests","detail":"Too Many Requests","type":"about:blank","status":429}',
    "usage_cap": (
        '{"title":"UsageCapExceeded","period":"Monthly","scope":"Product",'
        '"detail":"Usage cap exceeded: Monthly product cap",'
        '"type":"https://api.twitter.com/2/problems/usage-capped"}'
    ),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_bodies_are_those_that_were_recorded(name: str) -> None:
    """Clients tell the refusals apart by these bytes."""
    assert REFUSALS[name].body == BODIES[name]


def test_every_refusal_is_an_error_with_a_body_of_its_type() -> None:
    """JSON where the content type says so, HTML where it says that."""
    for refusal in REFUSALS.values():
        assert refusal.status == 307 or 400 <= refusal.status < 600
        if refusal.content_type.startswith("application/json"):
            assert json.loads(refusal.body)
        else:
            assert refusal.body.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("kind", DISCONNECT_TYPES)
def test_disconnect_line_holds_an_error_and_no_data(kind: str) -> None:
    """It is a line of the stream, with nothing but errors."""
    message = json.loads(disconnect_line(kind))
    assert {"errors"} == message.keys()
    assert kind == message["errors"][0]["disconnect_type"]
