"""The examples of docs/operations.md that run a partition each: they are read as YAML and run as jq, not looked at."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("### Several partitions")[2].partition("\n## ")[0]
NEEDED = {"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN": "token"}


def examples(language: str) -> list[str]:
    """Give the examples of the section in a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def test_compose() -> None:
    """Each service has a partition and a journal of its own, and a grace period as the image's drain needs it."""
    compose, _ = map(yaml.safe_load, examples("yaml"))
    services: dict[str, Any] = compose["services"]
    partitions = [
        load(NEEDED | {"MILLRACE_SOURCE": "sample10"} | service["environment"]).partition
        for service in services.values()
    ]
    assert partitions == [1, 2]
    volumes = [volume for service in services.values() for volume in service["volumes"]]
    assert volumes == [f"{name}:/var/lib/millrace" for name in compose["volumes"]]
    assert {service["stop_grace_period"] for service in services.values()} == {"15s"}


def test_kubernetes() -> None:
    """A pod for each partition of the firehose, numbered from 1, with a volume of its own."""
    _, workload = map(yaml.safe_load, examples("yaml"))
    spec = workload["spec"]
    pod = spec["template"]
    (container,) = pod["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    field = container["env"][1]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['apps.kubernetes.io/pod-index']"
    for number in (spec["ordinals"]["start"], spec["ordinals"]["start"] + spec["replicas"] - 1):
        environ = {**NEEDED, **{name: value or str(number) for name, value in values.items()}}
        assert load(environ).partition in {1, 20}
    assert [mount["name"] for mount in container["volumeMounts"]] == [
        claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]
    ]
    assert spec["selector"]["matchLabels"] == pod["metadata"]["labels"]


@pytest.mark.skipif(shutil.which("jq") is None, reason="the example needs jq")
def test_ecs(tmp_path: Path) -> None:
    """From the stack's own task a task for one partition is made, with its source and without rules."""
    (script,) = examples("sh")
    names = re.findall(r"\$\(resource (\w+)\)", script)
    template = (ROOT / "deploy" / "template.yaml").read_text(encoding="utf-8")
    for name, kind in zip(names, ["AWS::ECS::Cluster", "AWS::ECS::Service"], strict=True):
        assert f"\n  {name}:\n    Type: {kind}\n" in template
    environment = [{"name": "MILLRACE_STREAM", "value": "posts"}, {"name": "MILLRACE_RULES", "value": "cats"}]
    task = {"taskDefinition": {"family": "f", "revision": 7, "containerDefinitions": [{"environment": environment}]}}
    (tmp_path / "task.json").write_text(json.dumps(task))
    program = re.search(r"jq --arg n \"\$n\" '(.*?)' task\.json", script, re.DOTALL)
    assert program is not None
    out = subprocess.run(
        ["jq", "--arg", "n", "3", program[1], "task.json"], cwd=tmp_path, capture_output=True, check=True
    )
    made = json.loads(out.stdout)
    assert made["family"] == "millrace-3"
    assert "revision" not in made
    environ = {entry["name"]: entry["value"] for entry in made["containerDefinitions"][0]["environment"]}
    settings = load({"MILLRACE_BEARER_TOKEN": "token", **environ})
    assert (settings.source, settings.partition, settings.rules) == ("firehose", 3, ())
