import json
from random import Random

import pytest

from service.core.reconnect import Reason
from service.http_client import UnavailableError
from service.token import BearerToken
from tests.service.scripted_server import FakeX, refuses


async def test_a_token_that_x_gave_is_asked_for_anew_when_it_is_refused() -> None:
    """A revoked token is replaced, and each is made known before it is used."""
    answers = [json.dumps({"access_token": token}).encode() for token in ("AAA", "BBB")]
    new: list[str] = []
    async with FakeX(*[refuses(200, answer) for answer in answers]) as x:
        token = BearerToken(x.url, key="key", secret="secret", rng=Random(1), on_new=new.append)
        assert [await token.get(), await token.get()] == ["AAA", "AAA"]
        assert not token.refused("AAA"), "X may give the same one again"
        assert await token.get() == "BBB"
        assert new == ["AAA", "BBB"]
    assert len(x.requests) == 2


async def test_a_token_that_is_set_is_read_anew_when_it_is_refused() -> None:
    """A secret that was rotated is taken up, and made known before it is used; each text is worth one try at once."""
    secrets = ["old"]
    new: list[str] = []
    token = BearerToken("http://127.0.0.1:1", read=lambda: secrets[-1], rng=Random(1), on_new=new.append)
    assert await token.get() == "old"
    secrets.append("rotated")
    assert await token.get() == "old"
    assert token.refused("old")
    assert await token.get() == "rotated"
    assert token.refused("old"), "to a request that went before"
    assert await token.get() == "rotated"
    assert new == ["old", "rotated"]
    assert not token.refused("rotated")


async def test_key_and_secret_become_a_token() -> None:
    """The exchange is X's OAuth 2 request for app-only tokens."""
    answer = json.dumps({"token_type": "bearer", "access_token": "AAA"}).encode()
    async with FakeX(refuses(200, answer)) as x:
        assert await BearerToken(x.url + "/", key="key", secret="secret", rng=Random(1)).get() == "AAA"
    assert x.requests[0].startswith(b"POST /oauth2/token HTTP/1.1")
    assert b"Authorization: Basic a2V5OnNlY3JldA==\r\n" in x.requests[0]


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, b'{"errors":[{"code":99,"message":"Unable to verify your credentials"}]}', Reason.UNAUTHORIZED),
        (200, b'{"token_type":"bearer"}', Reason.UNEXPECTED_ANSWER),
        (200, b"<html>", Reason.UNEXPECTED_ANSWER),
        (200, b'{"access_token":"\xff"}', Reason.UNEXPECTED_ANSWER),
        (503, b"", Reason.SERVER_ERROR),
        (301, b"", Reason.REDIRECT),
    ],
)
async def test_no_token(status: int, body: bytes, reason: Reason) -> None:
    """Whatever X answers instead of a token becomes one line, without the secret."""
    async with FakeX(refuses(status, body)) as x:
        with pytest.raises(UnavailableError) as raised:
            await BearerToken(x.url, key="key", secret="s3cret", rng=Random(1)).get()
    assert raised.value.verdict.reason is reason
    assert str(status) in str(raised.value)
    assert "s3cret" not in str(raised.value)


async def test_no_token_without_network() -> None:
    """A server that is not there is a network error, to be tried again."""
    async with FakeX() as x:
        url = x.url
    with pytest.raises(UnavailableError) as raised:
        await BearerToken(url, key="key", secret="secret", rng=Random(1)).get()
    assert raised.value.verdict.reason is Reason.NETWORK_ERROR
