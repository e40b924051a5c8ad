"""The whole pipeline as real processes on loopback, with trouble on the way. Real time: each takes some seconds."""

import asyncio
import base64
import io
import json
import re
from hashlib import md5
from pathlib import Path

import aiohttp
import pytest
from aws_kinesis_agg.deaggregator import deaggregate_records
from rich.console import Console

from local import demo
from local.pipeline import STREAM, Pipeline
from local.reconcile import fetch_sent, fetch_shards
from processor.wire import decode
from tests.integration.steps import delivered, run, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]


def balance(metrics: dict[str, float]) -> float:
    """What has come less what has gone or waits; always 0."""
    came = metrics["posts_received_total"] + metrics["posts_recovered_total"]
    gone = sum(metrics[f"posts_{name}_total"] for name in ("delivered", "dropped", "duplicate"))
    return came - gone - metrics["posts_buffered"]


async def test_killing_kinesis_for_five_seconds_loses_nothing(tmp_path: Path) -> None:
    """While Kinesis is dead posts wait, afterwards all are delivered, in order, and the counts agree throughout."""
    async with Pipeline(tmp_path, rate=300) as running:
        await delivered(running, 300)
        balances = []
        restart = asyncio.create_task(running.restart_kinesis(after=5))
        while not restart.done():
            balances.append(balance(await running.metrics()))
            await asyncio.sleep(0.2)
        await restart
        await running.stop_posts()
        await running.settle()
        result = await running.reconcile()

    assert set(balances) == {0}
    assert result.ok, result.summary()
    assert result.sent > 1500
    assert result.in_table == result.sent


async def test_every_kind_of_trouble_at_once(tmp_path: Path) -> None:
    """Drops, half lines, lost answers, throttles and failures together lose nothing and keep every key's order."""
    async with Pipeline(tmp_path, rate=500) as running:
        await delivered(running, 200)
        await running.fault_at_kinesis("drop", requests=5, operations=["PutRecords"])
        await running.fault_at_x("line", line="this is not JSON")
        await running.fault_at_x("line", line='{"data": {"text": "no id"}}')
        await running.fault_at_x("fin_mid_line", after=0.5)
        await running.fault_at_kinesis("fail_records", every=7, seconds=3)
        await running.fault_at_kinesis("throttle_shard", shard=1, seconds=2)
        await delivered(running, 2500)
        await running.stop_posts()
        await running.settle()
        metrics = await running.metrics()
        result = await running.reconcile()
        refused = (await running.kinesis_stats())["refused"]

    assert balance(metrics) == 0
    assert metrics["posts_dropped_total{not_json}"] >= 1
    assert metrics["posts_dropped_total{no_id}"] == 1
    assert result.ok, result.summary()
    assert result.repeated > 0, "lost answers must have led to repeats, or nothing was tested"
    assert not refused, "a limit of Kinesis was broken"
    letters = [json.loads(line) for line in (tmp_path / "journal" / "dead-letters.jsonl").read_bytes().splitlines()]
    assert {"not_json", "no_id"} <= {letter["reason"] for letter in letters}
    assert "this is not JSON" in {letter.get("line") for letter in letters}


async def test_the_library_of_aws_reads_exactly_the_lines_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What lies in Kinesis decodes with aws-kinesis-agg to the very lines that X wrote."""
    async with Pipeline(tmp_path, rate=300, limit=900, table=False) as running:
        await delivered(running, 900)
        async with aiohttp.ClientSession() as http:
            sent = {post.md5 for post in await fetch_sent(http, running.x.url)}
            records: list[bytes] = []
            for shard in range(4):
                query = {"stream": STREAM, "shard": str(shard)}
                async with http.get(f"{running.kinesis.url}/admin/ledger", params=query) as response:
                    page = await response.json()
                assert page["next"] is None
                records += [base64.b64decode(record["data"]) for record in page["records"]]
    event = [
        {
            "eventID": f"shardId-000000000000:{number}",
            "eventName": "aws:kinesis:record",
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventSourceARN": "arn:aws:kinesis:us-east-1:000000000000:stream/posts",
            "invokeIdentityArn": "arn:aws:iam::000000000000:role/x",
            "awsRegion": "us-east-1",
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": "k",
                "sequenceNumber": str(number),
                "data": base64.b64encode(data).decode(),
                "approximateArrivalTimestamp": 1.0,
            },
        }
        for number, data in enumerate(records)
    ]
    read = deaggregate_records(event)
    lines = [base64.b64decode(record["kinesis"]["data"]) for record in read]

    assert len(records) < 900, "nothing was aggregated"
    assert len(lines) == 900
    assert {md5(line, usedforsecurity=False).hexdigest() for line in lines} == sent


async def test_sigterm_drains_and_ends_with_0(tmp_path: Path) -> None:
    """SIGTERM in the middle of the flow: all that was read is delivered, nothing is left behind, the exit code is 0."""
    async with Pipeline(tmp_path, rate=500, settings={"MILLRACE_LINGER_SECONDS": "5"}, table=False) as running:
        await delivered(running, 1)
        before = await running.metrics()
        code = await running.daemon.stop()
        result = await running.reconcile()
    log = [json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines()]

    assert before["posts_buffered"] > 0
    assert code == 0
    # What X wrote while the connection was being closed was never read; X cannot know.
    assert result.in_kinesis >= before["posts_received_total"]
    assert {"event": "stopped", "delivered": result.in_kinesis, "dropped": 0}.items() <= log[-1].items()
    assert not [entry for entry in log if entry["event"] == "posts_left_in_journal"]


async def test_a_rejected_token_is_retried_and_shown(tmp_path: Path) -> None:
    """A token that X refuses is a reason in /readyz and a counted retry; the daemon lives on and says no secret."""
    secret = "wrong-token-wrong-token"
    settings = {"MILLRACE_BEARER_TOKEN": secret, "MILLRACE_RULES": ""}
    async with Pipeline(tmp_path, rate=10, settings=settings, table=False) as running, aiohttp.ClientSession() as http:
        await until(running, lambda metrics: metrics.get("stream_reconnects_total{unauthorized}", 0) > 0)
        async with http.get(f"{running.daemon.url}/readyz") as response:
            status, report = response.status, await response.json()
        async with http.get(f"{running.daemon.url}/healthz") as response:
            assert response.status == 200

    assert status == 503
    assert report["checks"]["stream"]["ok"] is False
    assert "MILLRACE_BEARER_TOKEN" in report["checks"]["stream"]["reason"]
    assert secret not in (tmp_path / "daemon.log").read_text() + json.dumps(report)


async def test_check_and_rules_say_what_is_there(tmp_path: Path) -> None:
    """`check` has a line for all that is needed; `rules` shows the difference, and `--apply` makes it."""
    async with Pipeline(tmp_path, rate=10, table=False) as running:
        environment = running.daemon_environment()
        code, output, _ = await run(environment, "service", "check")
        assert code == 0, output
        names = ["configuration", "disk", "port", "credentials", "stream", "permissions", "x token", "x rules", "clock"]
        # A dry run might store a record where it is not AWS that is asked.
        words = ["not tried:" if name == "permissions" else "ok:" for name in names]
        starts = [f"{name:<14} {word} " for name, word in zip(names, words, strict=True)]
        assert all(map(str.startswith, output.splitlines(), starts)), output
        other = environment | {"MILLRACE_RULES": "tea lang:en"}
        _, output, _ = await run(other, "service", "rules")
        assert output.splitlines() == ["+ tea lang:en  [millrace:]", "- coffee  [millrace:]", "not made: add --apply"]
        _, output, _ = await run(other, "service", "rules", "--apply")
        assert output.splitlines()[-1] == "made"
        _, output, _ = await run(other, "service", "rules")
        assert output.splitlines() == ["  tea lang:en  [millrace:]", "nothing to change"]


async def test_standard_input_is_carried_to_its_end(tmp_path: Path) -> None:
    """JSON lines of any kind, keyed by a pointer: all are delivered in their keys' order; what is none is told."""
    lines = [json.dumps({"user": {"id": number % 7}, "n": number}) for number in range(5000)]
    async with Pipeline(tmp_path, rate=1, table=False) as running:
        environment = running.daemon_environment() | {
            "MILLRACE_SOURCE": "stdin",
            "MILLRACE_PARTITION_KEY": "/user/id",
            "MILLRACE_JOURNAL": str(tmp_path / "other"),
            "MILLRACE_MEMORY_LIMIT": "1MiB",
            "MILLRACE_COMPRESSION": "zstd",
        }
        await running.daemon.stop()
        code, output, errors = await run(environment, "service", given="\n".join([*lines, "no JSON"]).encode())
        assert (code, errors) == (0, ""), output
        last = json.loads(output.splitlines()[-1])
        assert {"event": "stopped", "received": 5001, "delivered": 5000, "dropped": 1}.items() <= last.items()
        async with aiohttp.ClientSession() as http:
            shards = await fetch_shards(http, running.kinesis.url, STREAM)
    found = [line for shard in shards for record in shard.records for line in decode(record).records]
    kept: dict[int, list[int]] = {}
    for record in found:
        line = json.loads(record.data)
        if "user" in line:
            kept.setdefault(line["user"]["id"], []).append(line["n"])

    assert {key: list(range(key, 5000, 7)) for key in range(7)} == kept


async def test_faults_of_the_set_up_are_one_line_before_anything_is_read(tmp_path: Path) -> None:
    """No such stream, wrong credentials, no region, no credentials: one line each, code 1, and X is not asked."""
    async with Pipeline(tmp_path, rate=10, table=False) as running:
        await running.daemon.stop()
        connections = (await running.x_stats())["connections"]
        good = running.daemon_environment()
        cases = {
            "MILLRACE_STREAM": good | {"MILLRACE_STREAM": "nobody"},
            "secret access key": good | {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "AWS_REGION": {k: v for k, v in good.items() if k != "AWS_REGION"},
            "AWS_ACCESS_KEY_ID": {k: v for k, v in good.items() if not k.startswith("AWS_A")}
            | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)},
        }
        ends = await asyncio.gather(
            *(
                run(environment | {"MILLRACE_JOURNAL": str(tmp_path / f"other-{number}")}, "service")
                for number, environment in enumerate(cases.values())
            )
        )
        for words, (code, _, errors) in zip(cases, ends, strict=True):
            assert (code, errors.count("\n")) == (1, 1), errors
            assert words in errors
        assert (await running.x_stats())["connections"] == connections


@pytest.mark.long
async def test_the_demo_ends_well() -> None:
    """A short demo ends with exit code 0 and says what became of the posts."""
    output = io.StringIO()
    code = await demo.run({"SECONDS_TO_RUN": "10"}, Console(file=output, width=120))
    text = output.getvalue()

    assert code == 0, text
    assert re.search(r"lost +0\n", text)
    assert re.search(r"backfilled +[1-9]", text), "the disconnection cost nothing, or its posts did not come back"
    assert re.search(r"^rules 2 ", text, re.MULTILINE), "the rules have not changed"
    assert re.search(r"out of order +0\n", text)
    assert re.search(r"quarantined +4, ", text)
    for command in ("latest -n 5", r"author \d+ -n 5", "rule [^\n]+ -n 5"):
        assert re.search(rf"\$ python -m processor {command}\n20[^\n]+  \S", text), text
