"""What a scrape of the daemon has, and which series an expression asks for."""

import re

from prometheus_client import generate_latest

from service.core.lanes import ShardState
from service.core.look import Inside
from service.core.verdict import Check
from service.metrics import Metrics, new_registry

_SELECTOR = re.compile(r"\b((?:millrace|process)_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def samples() -> dict[str, list[dict[str, str]]]:
    """Return all series of a daemon that has just started with one shard: name -> the labels of each."""
    registry = new_registry()
    metrics = Metrics(registry)
    shard = ShardState(**(dict.fromkeys(ShardState._fields, 0) | {"shard_id": "shardId-000000000000"}))  # type: ignore[arg-type]
    checks = dict.fromkeys(("stream", "kinesis", "buffer"), Check(True, "", 0.0))
    metrics.read_inside = lambda: Inside(shards=[shard], checks=checks)
    metrics.shards([shard.shard_id])
    metrics.disconnected("cut", 0.0)
    found: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for line in generate_latest(registry).decode().splitlines():
        if line and not line.startswith("#"):
            name, _, labels = line.partition(" ")[0].partition("{")
            found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return found


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return each selector of an expression: the metric, and its matchers as label, operator, value."""
    return [(name, _MATCHER.findall(matchers)) for name, matchers in _SELECTOR.findall(expression)]


def unknown(expression: str) -> list[str]:
    """Return what an expression asks for and no daemon shows: metrics, labels, and values of labels."""
    present = samples()
    wrong: list[str] = []
    for name, matchers in selectors(expression):
        series = present.get(name, [])
        if not series:
            wrong.append(name)
        for label, operator, value in matchers:
            if label in {"job", "instance"}:
                continue
            known = {labels.get(label) for labels in series}
            if known == {None}:
                wrong.append(f"{name}{{{label}}}")
            elif operator in {"=", "=~"} and "$" not in value and label not in {"shard", "le"}:
                wrong += [f'{name}{{{label}="{one}"}}' for one in value.split("|") if one not in known]
    return wrong
