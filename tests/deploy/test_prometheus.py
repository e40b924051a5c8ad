import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.template import load
from service.core.records import DropReason
from tests.deploy.exposed import unknown

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TESTS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]
RUNBOOK = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
# The stack's alarms lead to the same place.
RUNBOOK_URL = load().document["Parameters"]["RunbookUrl"]["Default"]

# The first is a message; the other comes with the end of a connection, which has alerts of its own.
ORDINARY_DROPS = {DropReason.X_ERROR, DropReason.LINE_CUT}

every_alert = pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])


@every_alert
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    """Each has a severity, a time, a summary that names the instance, a description, and a link to its own section."""
    annotations = rule["annotations"]

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"\d+m", rule["for"])
    assert "{{ $labels.instance }}" in annotations["summary"]
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"{RUNBOOK_URL}#{rule['alert'].lower()}"
    assert re.search(rf"^### {rule['alert']}\n\n\S", RUNBOOK, re.MULTILINE), "the section that it links to"


@every_alert
def test_an_alert_asks_for_what_the_daemon_shows(rule: dict[str, Any]) -> None:
    """No metric, label or value of a label in an expression is one that no daemon shows."""
    assert unknown(rule["expr"]) == []


@every_alert
def test_an_alert_has_been_seen_firing_and_not_firing(rule: dict[str, Any]) -> None:
    """Promtool's tests expect each once before its time and once after, for the instance that is in trouble only."""
    looks = [
        look
        for test in TESTS
        if test["name"].split(",")[0] == rule["alert"]
        for look in test["promql_expr_test"]
        if look["expr"] == f'ALERTS{{alertname="{rule["alert"]}", alertstate="firing"}}'
    ]
    fired = [sample["labels"] for look in looks for sample in look["exp_samples"]]

    assert [look for look in looks if not look["exp_samples"]]
    assert fired
    assert all('instance="b"' not in labels for labels in fired)


def test_every_reason_for_a_drop_has_one_alert() -> None:
    """Lost posts, or lines that are none; what the day brings has no alert."""
    asked = [
        reason
        for rule in RULES
        for found in re.findall(r'posts_dropped_total\{reason=~"([^"]+)"', rule["expr"])
        for reason in found.split("|")
    ]
    assert sorted(asked) == sorted(reason.value for reason in set(DropReason) - ORDINARY_DROPS)


def test_every_section_of_the_alerts_is_of_an_alert() -> None:
    """The runbook has no section of an alert that is gone."""
    sections = set(re.findall(r"^### (Millrace\w+)$", RUNBOOK, re.MULTILINE))

    assert sections == {rule["alert"] for rule in RULES}


def test_the_configuration_loads_the_alerts() -> None:
    """The rules stand beside the configuration, and their job is the one that it scrapes."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))

    assert configuration["rule_files"] == ["alerts.yml"]
    assert [job["job_name"] for job in configuration["scrape_configs"]] == ["millrace"]


def test_what_is_unknown_is_found() -> None:
    """The check of the expressions above sees a wrong metric, label and value."""
    assert unknown('rate(millrace_posts_lost_total[5m]) / millrace_ready{check="disk"}') == [
        "millrace_posts_lost_total",
        'millrace_ready{check="disk"}',
    ]
    assert unknown('millrace_buffer_bytes{shard="a"}') == ["millrace_buffer_bytes{shard}"]
