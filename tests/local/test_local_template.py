import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from local.template import TEMPLATE, MappingSettings, Template, TemplateError, load

TEXT = TEMPLATE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a DynamoDB."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def changed(folder: Path, old: str, new: str) -> Template:
    """Return the real template with one piece of its text replaced."""
    assert TEXT.count(old) == 1
    path = folder / "template.yaml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    return load(path)


def test_dynamodb_takes_the_table_definition(endpoint: str) -> None:
    """CreateTable accepts the definition as it is, and makes the keys and indexes that the template asks for."""
    dynamodb = boto3.client(
        "dynamodb",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )
    template = load()
    dynamodb.create_table(**template.table_definition("mill"))
    dynamodb.update_time_to_live(
        TableName="mill-EventData",
        TimeToLiveSpecification={"AttributeName": template.ttl_attribute, "Enabled": True},
    )

    table = dynamodb.describe_table(TableName="mill-EventData")["Table"]
    assert table["KeySchema"] == [{"AttributeName": "Id", "KeyType": "HASH"}]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["SSEDescription"]["Status"] == "ENABLED"
    indexes = {index["IndexName"]: index for index in table["GlobalSecondaryIndexes"]}
    assert {name: [key["AttributeName"] for key in index["KeySchema"]] for name, index in indexes.items()} == {
        "ByAuthor": ["AuthorId", "SortId"],
        "ByTime": ["Bucket", "SortId"],
    }
    ttl = dynamodb.describe_time_to_live(TableName="mill-EventData")["TimeToLiveDescription"]
    assert ttl == {"AttributeName": "ExpiresAt", "TimeToLiveStatus": "ENABLED"}


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
    ("old", "new", "complaint"),
    [
        ("Handler: processor.handler.handle", "Handler: !Ref ArtifactKey", "ArtifactKey has no default"),
        ("Handler: processor.handler.handle", "Handler: !Ref Nothing", "Nothing is neither a parameter nor a resource"),
        ("Handler: processor.handler.handle", "Handler: !Sub '${Nothing}.handle'", "Nothing is neither a parameter"),
        ("Handler: processor.handler.handle", "Handler: !GetAtt EventStream.Arn", "EventStream.Arn is only known in"),
        ("Handler: processor.handler.handle", "Handler: !Ref AWS::Region", "AWS::Region is only known in"),
        ("Handler: processor.handler.handle", "Handler: !Join ['.', [a, b]]", "Fn::Join of"),
        ("Handler: processor.handler.handle", "Handler: !If [Never, a, b]", "Never is no condition of the template"),
        (
            "Handler: processor.handler.handle",
            "Handler: !FindInMap [ProducerSize, '1', Memory]",
            "the mapping ProducerSize has no 1, Memory",
        ),
        ("Handler: processor.handler.handle", "Handler: !Ref AWS::NoValue", "DDBEventProcessor.Handler is not set"),
        ("MemorySize: !Ref FunctionMemory", "Layers: [some]", "DDBEventProcessor.Layers has no counterpart"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    """What cannot be resolved, what is missing and what a local run would ignore are errors that name it."""
    template = changed(tmp_path, old, new)
    with pytest.raises(TemplateError, match=re.escape(complaint)):
        template.function("mill")


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
