import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.generate import DIRECTORY, SELECTION, files
from tests.deploy.exposed import samples, selectors, unknown

ROOT = Path(__file__).parents[2]
BOARDS: dict[str, dict[str, Any]] = {
    path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DIRECTORY.glob("*.json"))
}
READERS = (
    "docs/operations.md",
    "deploy/prometheus/alerts.yml",
    *(f"deploy/grafana/dashboards/{name}" for name in BOARDS),
)
PANELS = [
    pytest.param(panel, id=f"{board}:{panel['title']}")
    for board, content in BOARDS.items()
    for panel in content["panels"]
    if panel["type"] != "row"
]


def test_the_files_are_what_the_generator_makes() -> None:
    """`make dashboards` changes nothing."""
    assert files() == {path.name: path.read_text(encoding="utf-8") for path in DIRECTORY.glob("*.json")}


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_ready_to_be_provisioned(name: str) -> None:
    """It has a stable uid and no id, its variables, a time range and a refresh, and no panel covers another."""
    board = BOARDS[name]
    panels = board["panels"]
    places = [(panel["gridPos"], panel["title"]) for panel in panels]

    assert board["uid"] == f"millrace-{name.removesuffix('.json')}"
    assert "id" not in board
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "job", "instance"]
    assert (board["time"]["from"], board["refresh"]) == ("now-30m", "10s")
    assert len({panel["id"] for panel in panels}) == len(panels)
    for (one, first), (two, second) in combinations(places, 2):
        beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        above = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
        assert beside or above, f"{first} and {second}"
    assert all(place["x"] + place["w"] <= 24 for place, _ in places)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Each has a title, a description, a unit, and asks the chosen data source."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}
    assert panel["targets"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_what_the_daemon_shows(panel: dict[str, Any]) -> None:
    """Every selector is of the chosen job and instances, and of a metric and labels that are there."""
    for target in panel["targets"]:
        assert unknown(target["expr"]) == []
        found = selectors(target["expr"])
        assert found
        for name, matchers in found:
            assert ("job", "=", "$job") in matchers, name
            assert ("instance", "=~", "$instance") in matchers, name
        assert SELECTION in target["expr"]


def test_every_metric_has_a_reader() -> None:
    """A panel or an alert asks for it, or docs/operations.md says what it is for."""
    readers = "".join((ROOT / name).read_text(encoding="utf-8") for name in READERS)
    parts = r"_(bucket|count|sum)\b"
    read = set(re.findall(r"\bmillrace_\w+", re.sub(parts, "", readers)))
    assert {re.sub(parts, "", name) for name in samples() if name.startswith("millrace_")} - read == set()


def test_grafana_finds_what_it_provisions() -> None:
    """The files that the compose file mounts are where the provisioning looks, and its Prometheus is a service."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    provisioning = ROOT / "deploy/grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/millrace.yml").read_text(encoding="utf-8"))["providers"]
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert home == f"{provider['options']['path']}/overview.json"
    assert "overview.json" in BOARDS
    assert source["url"] == "http://prometheus:9090"
    assert {"prometheus", "grafana"} <= services.keys()
