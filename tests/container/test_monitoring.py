"""Prometheus in the compose file: it scrapes the daemon, has the alerts, and every panel of the dashboards has data."""

import json
import math

import pytest
import yaml

from tests.container.stack import ROOT, Stack, wait_for
from tests.deploy.exposed import selectors

pytestmark = [pytest.mark.integration, pytest.mark.container, pytest.mark.timeout(400)]

ALERTS = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
QUERIES = {
    f"{path.stem}:{panel['title']}:{target['refId']}": target["expr"]
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
    for target in panel.get("targets", [])
}
# What Grafana puts in. It makes the interval four scrapes long.
VARIABLES = {"$job": "millrace", "$instance": ".*", "$__rate_interval": "20s"}


def test_the_daemon_is_scraped(stack: Stack) -> None:
    """Its target is up."""
    wait_for("the target is up", lambda: [one["value"][1] for one in stack.query('up{job="millrace"}')] == ["1"])


def test_all_alerts_are_loaded_and_none_fires(stack: Stack) -> None:
    """Prometheus evaluates every alert without an error, and a healthy daemon sets none off."""
    wait_for("all are evaluated", lambda: {rule["health"] for rule in _rules(stack)} == {"ok"})

    assert {rule["name"] for rule in _rules(stack)} == set(ALERTS)
    assert [alert["labels"]["alertname"] for alert in stack.prometheus("alerts")["alerts"] if _fires(alert)] == []


def _fires(alert: dict[str, object]) -> bool:
    return alert["state"] == "firing"


def _rules(stack: Stack) -> list[dict[str, str]]:
    return [rule for group in stack.prometheus("rules")["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_watches_something(stack: Stack, name: str) -> None:
    """Every selector of its expression has series at the running daemon."""
    for metric, matchers in selectors(ALERTS[name]):
        # Some values of labels come only with the trouble; the labels themselves are there.
        labels = ", ".join(f'{label}!=""' for label, _, _ in matchers)
        wait_for(f"there is {metric}", lambda: stack.query(f"{metric}{{{labels}}}") != [], 30)  # noqa: B023 - called here


@pytest.mark.parametrize("name", QUERIES)
def test_a_panel_has_data(stack: Stack, name: str) -> None:
    """Each query of each panel returns at least one number."""
    query = QUERIES[name]
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)

    def has_number() -> bool:
        return any(math.isfinite(float(one["value"][1])) for one in stack.query(query))

    wait_for(f"there is a number for {query}", has_number, 45)
