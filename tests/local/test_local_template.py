import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from local.template import MappingSettings, Template, TemplateError, load


def test_mapping_holds_the_values_of_the_parameters() -> None:
    """Each parameter of the mapping arrives in the field of its meaning, the others keep the template's values."""
    parameters: dict[str, str | int] = {
        "BatchSize": 11,
        "MaximumBatchingWindowInSeconds": "12",
        "ParallelizationFactor": 3,
        "MaximumRetryAttempts": 14,
        "MaximumRecordAgeInSeconds": "3600",
    }
    assert (
        MappingSettings(
            batch_size=11,
            window_seconds=12,
            parallelization_factor=3,
            bisect=True,
            retry_attempts=14,
            record_age_seconds=3600,
            report_batch_item_failures=True,
            starting_position="TRIM_HORIZON",
        )
        == load(parameters=parameters).mapping()
    )


def test_function_runs_with_the_names_of_its_stack() -> None:
    """The environment holds strings only, with the names that the stack would give."""
    function = load(parameters={"RetentionDays": 7, "FunctionMemory": 1769}).function("Mill")
    assert function.name == "Mill-DDBEventProcessor"
    assert function.handler == "processor.handler.handle"
    assert (function.timeout_seconds, function.memory_megabytes) == (60, 1769)
    assert function.environment == {
        "TABLE": "Mill-EventData",
        "QUARANTINE": "s3://mill-failurebucket/quarantine",
        "TTL_DAYS": "7",
        "TIME_SHARDS": "4",
        "ID_POINTER": "",
        "TIME_POINTER": "",
        "METRICS": "true",
    }
    assert load(parameters={"Monitoring": "false"}).function("Mill").environment["METRICS"] == "false"


def test_parameter_must_exist_and_fit() -> None:
    """A misspelt parameter and a number that is none are refused, with the parameter's name."""
    with pytest.raises(TemplateError, match=r"BatchSise is no parameter of the template; there are: ArtifactBucket, "):
        load(parameters={"BatchSise": 1})
    with pytest.raises(TemplateError, match="BatchSize is a number, not 'many'"):
        load(parameters={"BatchSize": "many"})


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("Handler", {"Ref": "ArtifactKey"}, "ArtifactKey has no default"),
        ("Handler", {"Ref": "Nothing"}, "Nothing is neither a parameter nor a resource"),
        ("Handler", {"Fn::Sub": "${Nothing}.handle"}, "Nothing is neither a parameter"),
        ("Handler", {"Fn::GetAtt": ["EventStream", "Arn"]}, "EventStream.Arn is only known in"),
        ("Handler", {"Ref": "AWS::Region"}, "AWS::Region is only known in"),
        ("Handler", {"Fn::Join": [".", ["a", "b"]]}, "Fn::Join of"),
        ("Handler", {"Fn::If": ["Never", "a", "b"]}, "Never is no condition of the template"),
        (
            "Handler",
            {"Fn::FindInMap": ["ProducerSize", "1", "Memory"]},
            "the mapping ProducerSize has no 1, Memory",
        ),
        ("Handler", {"Ref": "AWS::NoValue"}, "DDBEventProcessor.Handler is not set"),
        ("Layers", ["some"], "DDBEventProcessor.Layers has no counterpart"),
    ],
)
def test_nothing_is_guessed(name: str, value: Any, complaint: str) -> None:
    """What cannot be resolved, what is missing and what a local run would ignore are errors that name it."""
    document = deepcopy(load().document)
    document["Resources"]["DDBEventProcessor"]["Properties"][name] = value
    with pytest.raises(TemplateError, match=re.escape(complaint)):
        Template(document, {}).function("mill")


def test_resource_that_is_switched_off_cannot_be_referred_to() -> None:
    """A Ref to a resource whose condition is false is an error that names both."""
    template = load(parameters={"CreateClient": "false"})
    assert "StreamClientKey" not in template.resources()
    with pytest.raises(TemplateError, match="StreamClientKey is not in the stack, since its condition HasClient is"):
        template.resolve({"Ref": "StreamClientKey"}, lambda name, attribute: f"{name}.{attribute}")


def test_absent_value_leaves_no_trace() -> None:
    """AWS::NoValue removes its key from a mapping and its place from a list."""
    no_value = {"Ref": "AWS::NoValue"}
    node = {"kept": 1, "gone": no_value, "list": [1, {"Fn::If": ["IsProvisioned", no_value, 2]}, 3]}
    assert load().resolve(node, lambda name, _: name) == {"kept": 1, "list": [1, 3]}


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ({"Fn::Not": [{"Condition": "HasClient"}]}, False),
        ({"Fn::And": [{"Condition": "HasClient"}, {"Condition": "HasProducer"}]}, False),
        ({"Fn::And": [{"Condition": "HasClient"}, {"Condition": "IsProvisioned"}]}, True),
        ({"Fn::Split": [",", {"Ref": "AWS::Region"}]}, ["<AWS::Region>"]),
        ({"Fn::Split": [",", "a,b"]}, ["a", "b"]),
        ({"Fn::FindInMap": ["ProducerSize", {"Ref": "ProducerCpu"}, "Memory"]}, "512"),
        ({"Fn::Sub": ["${Here} ${BatchSize}", {"Here": {"Fn::If": ["HasClient", "yes", "no"]}}]}, "yes 500"),
    ],
)
def test_function_of_cloudformation_gives_its_value(node: Any, value: Any) -> None:
    """Each intrinsic function that the template uses gives what CloudFormation would."""
    assert load().resolve(node, lambda name, _: f"<{name}>") == value


@pytest.mark.parametrize(
    ("text", "complaint"), [("a: [", "is not YAML: while parsing"), ("- a\n", "is no CloudFormation template")]
)
def test_file_that_is_no_template_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """A broken file is one line of complaint with the file's name in it."""
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TemplateError, match=rf"broken\.yaml {complaint}") as caught:
        load(path)
    assert "\n" not in str(caught.value)
