"""X over TLS, as it is for real: the daemon is a process that trusts a certificate of ours. Some five seconds."""

import os
import ssl
from pathlib import Path

import aiohttp
import pytest

from bench.tls import make_certificate
from local.kinesis.server import LocalKinesis
from local.pipeline import CREDENTIALS
from local.posts import Generated
from local.processes import Process
from local.reconcile import SentPost, fetch_shards, post_id_of, read_letters, reconcile
from local.x_api.endings import Ending
from local.x_api.server import XApi
from local.x_api.settings import Settings
from processor.wire import decode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

ENDINGS = (Ending.CUT, Ending.FIN_MID_LINE, Ending.RESET, Ending.LAST_CHUNK)


def environment(x: XApi, kinesis: LocalKinesis, directory: Path, trusted: Path) -> dict[str, str]:
    """Give all of the daemon's environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MILLRACE_"))}
    return {
        **inherited,
        **CREDENTIALS,
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1",
        "SSL_CERT_FILE": str(trusted),
        "AWS_ENDPOINT_URL_KINESIS": kinesis.url,
        "MILLRACE_X_URL": x.url,
        "MILLRACE_BEARER_TOKEN": "any",
        "MILLRACE_RULES": "millrace",
        "MILLRACE_STREAM": "posts",
        "MILLRACE_HTTP_PORT": "0",
        "MILLRACE_JOURNAL": str(directory / "journal"),
        "MILLRACE_LOG_FORMAT": "json",
    }


async def connected(x: XApi, number: int) -> None:
    """Wait for the connection with this number."""
    await x.feed.until(lambda: len(x.ledger.connections) >= number and x.feed.streams)


async def written(x: XApi, posts: int) -> None:
    """Wait until so many more posts are written."""
    wanted = x.ledger.counts["written"] + posts
    await x.feed.until(lambda: x.ledger.counts["written"] >= wanted)


async def test_no_end_of_a_tls_connection_loses_a_line(tmp_path: Path) -> None:
    """Closed without a goodbye, in the middle of a line, by a reset or in good order: what was written arrived."""
    files = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*files)
    settings = Settings(rate=1000, enterprise=True)
    async with XApi(Generated(1), settings, tls=tls) as x, LocalKinesis({"posts": 4}) as kinesis:
        daemon = Process("daemon", ["service"], environment(x, kinesis, tmp_path, files[0]), tmp_path)
        await daemon.start(ready=False)
        try:
            for number, ending in enumerate((*ENDINGS, Ending.LAST_CHUNK), 1):
                await connected(x, number)
                await written(x, 300)
                if number > len(ENDINGS):
                    x.feed.stop()
                x.faults.inject(ending)
            # Who connects again has read the connection before to its end.
            await connected(x, len(ENDINGS) + 2)
        finally:
            code = await daemon.stop()
        async with aiohttp.ClientSession() as http:
            shards = await fetch_shards(http, kinesis.url, "posts")
    assert code == 0, daemon.last_words()
    stored = {post_id_of(line.data) or "" for s in shards for data in s.records for line in decode(data).records}
    sent = [SentPost(row.id, row.key, row.md5, row.state) for row in x.ledger.rows()]
    result = reconcile(sent, shards, stored, read_letters(tmp_path / "journal"))
    assert result.ok, result.summary()
    assert result.missed == 0
    assert [record.ending for record in x.ledger.connections][: len(ENDINGS)] == list(ENDINGS)
