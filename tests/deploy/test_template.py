import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from local.template import TEMPLATE, Template
from service.config import load
from tests.deploy.checks import CHANGES, SWITCHES
from tests.deploy.rendering import CODE, DOCUMENT, FULL, allowed, leaves, needs, render, symbol

RESOURCES = DOCUMENT["Resources"]

# Headers and body of each answer that CloudFormation got.
Received = list[tuple[dict[str, str], dict[str, str]]]


def test_template_fits_into_one_object() -> None:
    """CloudFormation takes a template of up to 1 MB out of a bucket, with up to 200 parameters and 500 resources."""
    assert TEMPLATE.stat().st_size < 1_000_000
    assert len(DOCUMENT["Parameters"]) <= 200
    assert len(RESOURCES) <= 500


class TestParameters:
    def test_each_is_described_and_grouped_once(self) -> None:
        """The console shows every parameter under a heading, with a word on what it does."""
        groups = DOCUMENT["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        grouped = [name for group in groups for name in group["Parameters"]]
        assert sorted(grouped) == sorted(DOCUMENT["Parameters"])
        assert all(group["Label"]["default"] for group in groups)
        assert all(spec["Description"].endswith(".") for spec in DOCUMENT["Parameters"].values())

    def test_only_the_code_has_no_default(self) -> None:
        """In a new account nothing must be chosen but where the code lies."""
        assert {name for name, spec in DOCUMENT["Parameters"].items() if "Default" not in spec} == CODE.keys()

    def test_none_is_forgotten(self) -> None:
        """The checks know what every parameter changes; RunbookUrl changes the end of each alarm's text."""
        assert CHANGES.keys() | SWITCHES.keys() | {"RunbookUrl"} == DOCUMENT["Parameters"].keys()
        alarms = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::CloudWatch::Alarm"]
        before, after = leaves(render(**FULL)), leaves(render(**FULL, RunbookUrl="https://example.org/ops"))
        assert {path for path, leaf in before.items() if after[path] != leaf} == {
            "Dashboard.DashboardBody",
            *(f"{name}.AlarmDescription" for name in alarms),
        }

    def test_runbook_is_that_of_the_other_alerts(self) -> None:
        """The alarms of the stack and the alerts of Prometheus lead to one document."""
        alerts = (TEMPLATE.parent / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
        assert set(re.findall(r"runbook_url: (\S+)#", alerts)) == {DOCUMENT["Parameters"]["RunbookUrl"]["Default"]}

    @pytest.mark.parametrize(
        ("name", "good", "bad"),
        [
            ("ProducerTokenSecretArn", "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:x-1", "AAAAbearer"),
            ("ProducerVpc", "vpc-0123456789abcdef0", "default"),
            ("ProducerSubnets", "subnet-0123456789abcdef0,subnet-1", "subnet-1, subnet-2"),
            ("ProducerImage", "registry.example.org/millrace@sha256:12", "two words"),
            ("AlarmEmail", "me@example.org", "me"),
            ("RunbookUrl", "https://example.org/docs/operations.md", 'a"b'),
            ("PermissionsBoundaryArn", "arn:aws:iam::aws:policy/PowerUserAccess", "PowerUserAccess"),
            ("ArtifactBucket", "my.bucket-1", "s3://bucket"),
        ],
    )
    def test_pattern_takes_what_is_good_and_refuses_what_is_not(self, name: str, good: str, bad: str) -> None:
        """A wrong value is refused before anything is made, above all a token in the place of its secret's ARN."""
        spec = DOCUMENT["Parameters"][name]
        assert re.fullmatch(spec["AllowedPattern"], good)
        assert not re.fullmatch(spec["AllowedPattern"], bad)
        assert re.fullmatch(spec["AllowedPattern"], str(spec.get("Default", good)))
        assert spec["ConstraintDescription"].endswith(".")

    @pytest.mark.parametrize("rule", DOCUMENT["Rules"].values(), ids=DOCUMENT["Rules"])
    def test_rules_pass_with_the_defaults_of_either_mode(self, rule: dict[str, Any]) -> None:
        """Neither mode of the stream needs another parameter to be touched."""
        for mode in DOCUMENT["Parameters"]["StreamMode"]["AllowedValues"]:
            assert self.passes(rule, StreamMode=mode)

    def test_shards_of_an_on_demand_stream_are_refused(self) -> None:
        """A shard count that would be ignored is an error before anything is made."""
        rule = DOCUMENT["Rules"]["OnDemandTakesNoShardCount"]
        assert not self.passes(rule, StreamMode="ON_DEMAND", ShardCount=2)
        assert self.passes(rule, StreamMode="PROVISIONED", ShardCount=2)

    @pytest.mark.parametrize("missing", ["ProducerTokenSecretArn", "ProducerVpc", "ProducerSubnets"])
    def test_producer_that_is_not_whole_is_refused(self, missing: str) -> None:
        """A service without its token or its network is an error before anything is made."""
        rule = DOCUMENT["Rules"]["ProducerIsComplete"]
        assert self.passes(rule, **FULL)
        assert self.passes(rule)
        assert not self.passes(rule, **{**FULL, missing: ""})

    def test_address_that_would_get_nothing_is_refused(self) -> None:
        """An address for alarms that are switched off is an error."""
        rule = DOCUMENT["Rules"]["AlarmEmailNeedsAlarms"]
        assert self.passes(rule, AlarmEmail="me@example.org")
        assert not self.passes(rule, AlarmEmail="me@example.org", Monitoring="false")

    @staticmethod
    def passes(rule: Mapping[str, Any], **parameters: str | int) -> bool:
        """Say whether CloudFormation would go on with these parameters."""
        template = Template(DOCUMENT, {**CODE, **parameters})
        if not template.resolve(rule["RuleCondition"], symbol):
            return True
        return all(template.resolve(assertion["Assert"], symbol) for assertion in rule["Assertions"])


class TestStack:
    def test_names_are_those_that_were_promised(self) -> None:
        """Table and function are named after the stack, and a log group after its function."""
        stack = render()
        assert stack["EventDataTable"]["TableName"] == "${AWS::StackName}-EventData"
        assert stack["DDBEventProcessor"]["FunctionName"] == "${AWS::StackName}-DDBEventProcessor"
        for function in ("DDBEventProcessor", "Cleanup"):
            assert stack[f"{function}Logs"]["LogGroupName"] == f"/aws/lambda/{stack[function]['FunctionName']}"

    def test_handler_is_a_function_of_the_code(self) -> None:
        """The handler's name leads from the root of the zip, which holds the folder, to a function that is there."""
        handler = render()["DDBEventProcessor"]["Handler"]
        module, function = handler.rsplit(".", 1)
        source = (TEMPLATE.parents[1] / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert function in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}

    def test_outputs_are_what_an_operator_needs(self) -> None:
        """The outputs lead to the stream, the table, the function, the failures, the credentials and the alarms."""
        producer = {"ProducerService": "${ProducerService.Name}", "ProducerCluster": "${ProducerCluster}"}
        assert render(**FULL)["Outputs"] == render()["Outputs"] | producer
        assert render()["Outputs"] == {
            "Region": "${AWS::Region}",
            "StreamName": "${EventStream}",
            "StreamArn": "${EventStream.Arn}",
            "TableName": "${EventDataTable}",
            "FunctionName": "${DDBEventProcessor}",
            "FailureBucket": "${FailureBucket}",
            "TimeShards": 4,
            "ClientPolicyArn": "${StreamClientPolicy}",
            "AlarmTopicArn": "${AlarmTopic}",
            "Dashboard": "${Dashboard}",
            "AccessKeyId": "${StreamClientKey}",
            "CredentialsSecretArn": "${StreamClientCredentials}",
            "CredentialsCommand": "aws secretsmanager get-secret-value --region ${AWS::Region}"
            " --secret-id ${StreamClientCredentials} --query SecretString --output text",
        }

    def test_secret_holds_what_the_daemon_reads(self) -> None:
        """The secret is JSON with the daemon's own names."""
        assert json.loads(render()["StreamClientCredentials"]["SecretString"]) == {
            "AWS_ACCESS_KEY_ID": "${StreamClientKey}",
            "AWS_SECRET_ACCESS_KEY": "${StreamClientKey.SecretAccessKey}",
            "AWS_REGION": "${AWS::Region}",
            "MILLRACE_STREAM": "${EventStream}",
            "MILLRACE_LANES_PER_SHARD": "1",
        }

    def test_nothing_ties_it_to_a_partition_or_region(self) -> None:
        """There is no ARN, account, region or domain in it but the service principal, the same everywhere."""
        fixed = re.compile(r"arn:|\b\d{12}\b|\b[a-z]{2}(-[a-z]+)+-\d\b|amazonaws")
        defaults = {name: "" for name in FULL if name.endswith("Arn")}
        found = {leaf for leaf in leaves(render(**{**FULL, **defaults})).values() if fixed.search(str(leaf))}
        assert found == {
            "lambda.amazonaws.com",
            "ecs-tasks.amazonaws.com",
            "arn:${AWS::Partition}:ecr:${AWS::Region}:${AWS::AccountId}:repository/*",
        }

    def test_deleting_it_leaves_nothing(self) -> None:
        """The failure bucket is emptied after its writers are gone, and before it goes itself."""
        assert "DDBEventProcessor" in needs("EventSourceMapping")
        assert "FailureBucketCleanup" in needs("DDBEventProcessor")
        assert {"Cleanup", "CleanupPolicy", "FailureBucket"} <= needs("FailureBucketCleanup")

    @pytest.mark.parametrize("function", ["DDBEventProcessor", "Cleanup"])
    def test_no_function_can_bring_its_log_group_back(self, function: str) -> None:
        """Log groups exist before their function, go after it, and cannot be made by it."""
        stack = render()
        assert stack[function]["LoggingConfig"] == {"LogGroup": f"${{{function}Logs}}"}
        assert f"{function}Logs" in needs(function)
        assert not [action for action, _ in allowed(stack, f"{function}Policy") if "CreateLogGroup" in action]


class TestStream:
    def test_stream_is_encrypted_and_kept_for_a_day(self) -> None:
        """The stream is encrypted with the key that costs nothing and needs no permission."""
        stream = render()["EventStream"]
        assert stream["StreamEncryption"] == {"EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"}
        assert stream["RetentionPeriodHours"] == 24

    def test_mapping_never_blocks_a_shard_and_never_loses_a_record(self) -> None:
        """A failing record ends, at last and before the stream forgets it, in the failure bucket."""
        mapping = render()["EventSourceMapping"]
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert mapping["BisectBatchOnFunctionError"] is True
        assert mapping["DestinationConfig"] == {"OnFailure": {"Destination": "${FailureBucket.Arn}"}}
        assert mapping["StartingPosition"] == "TRIM_HORIZON"
        assert mapping["MetricsConfig"] == {"Metrics": ["EventCount"]}
        limits = DOCUMENT["Parameters"]
        assert limits["MaximumRetryAttempts"]["MinValue"] >= 0
        assert limits["MaximumRecordAgeInSeconds"]["MinValue"] >= 60
        assert limits["MaximumRecordAgeInSeconds"]["MaxValue"] < limits["StreamRetentionHours"]["MinValue"] * 3600

    def test_mapping_has_no_setting_that_kinesis_or_aggregates_forbid(self) -> None:
        """Filters drop aggregated records; pollers and scaling are refused for Kinesis, though linters accept them."""
        wrong = {"FilterCriteria", "ProvisionedPollerConfig", "ScalingConfig", "LoggingConfig"}
        assert not wrong & render()["EventSourceMapping"].keys()


class TestProducer:
    def test_there_are_never_two_at_once(self) -> None:
        """X allows one connection: the old task ends before the new one begins, whatever the reason for a new one."""
        service = render(**FULL)["ProducerService"]
        assert service["DesiredCount"] == 1
        deployment = service["DeploymentConfiguration"]
        assert (deployment["MinimumHealthyPercent"], deployment["MaximumPercent"]) == (0, 100)
        assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
        assert service["AvailabilityZoneRebalancing"] == "DISABLED"

    def test_container_is_the_image_as_it_was_made(self) -> None:
        """User, volume and health check are those of the Dockerfile; ECS reads none of them from the image."""
        dockerfile = (TEMPLATE.parents[1] / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
        task = render(**FULL)["ProducerTask"]
        (container,) = task["ContainerDefinitions"]
        assert f"\nUSER {container['User']}\n" in dockerfile
        (mount,) = container["MountPoints"]
        assert f"\nVOLUME {mount['ContainerPath']}\n" in dockerfile
        assert [volume["Name"] for volume in task["Volumes"]] == [mount["SourceVolume"]]
        check = container["HealthCheck"]
        assert check["Command"][0] == "CMD"
        assert f"CMD {json.dumps(check['Command'][1:])}\n" in dockerfile

    def test_container_holds_no_rights(self) -> None:
        """Not root, nothing to write to but the journal, no capability, no shell into it."""
        stack = render(**FULL)
        (container,) = stack["ProducerTask"]["ContainerDefinitions"]
        assert container["ReadonlyRootFilesystem"] is True
        assert container["Privileged"] is False
        assert container["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}}
        assert stack["ProducerService"]["EnableExecuteCommand"] is False
        assert "SecurityGroupIngress" not in stack["ProducerSecurityGroup"]
        assert {rule["ToPort"] for rule in stack["ProducerSecurityGroup"]["SecurityGroupEgress"]} == {443}

    @pytest.mark.parametrize("rules", ["", "coffee lang:en"])
    def test_daemon_takes_its_environment(self, rules: str) -> None:
        """Every name is a setting of the daemon, every value is good, and the token comes out of the secret."""
        (container,) = render(**{**FULL, "ProducerRules": rules})["ProducerTask"]["ContainerDefinitions"]
        environment = {pair["Name"]: str(pair["Value"]) for pair in container["Environment"]}
        secrets = {pair["Name"]: "token" for pair in container["Secrets"]}
        settings = load({**environment, **secrets, "MILLRACE_STREAM": "stream"})
        assert settings.shutdown_seconds < container["StopTimeout"] <= 120
        assert [rule.value for rule in settings.rules] == ([rules] if rules else [])
        assert settings.bearer_token is not None
        assert environment["MILLRACE_STREAM"] == "${EventStream}"

    @pytest.mark.parametrize("cpu", DOCUMENT["Parameters"]["ProducerCpu"]["AllowedValues"])
    def test_size_is_one_that_fargate_has(self, cpu: str) -> None:
        """Two to eight times as many MB as units of processor, and what memory the daemon takes fits in."""
        task = render(**{**FULL, "ProducerCpu": cpu})["ProducerTask"]
        assert int(cpu) * 2 == int(task["Memory"]) == int(task["ContainerDefinitions"][0]["Memory"])
        assert load({"MILLRACE_STREAM": "s", "MILLRACE_SOURCE": "stdin"}).memory_limit < int(task["Memory"]) * 2**20 / 2

    def test_log_group_is_the_stacks(self) -> None:
        """The log goes into a group that is deleted with the stack."""
        stack = render(**FULL)
        (container,) = stack["ProducerTask"]["ContainerDefinitions"]
        assert container["LogConfiguration"]["Options"]["awslogs-group"] == "${ProducerLogs}"
        assert stack["ProducerLogs"]["LogGroupName"] == "/millrace/${AWS::StackName}"


class TestTable:
    def test_keys_and_indexes_answer_the_queries(self) -> None:
        """By id, by author and by time; an index has what questions filter by and no text: each is paid again."""
        table = render()["EventDataTable"]
        assert table["KeySchema"] == [{"AttributeName": "Id", "KeyType": "HASH"}]
        assert {index["IndexName"]: index["KeySchema"] for index in table["GlobalSecondaryIndexes"]} == {
            "ByAuthor": [
                {"AttributeName": "AuthorId", "KeyType": "HASH"},
                {"AttributeName": "SortId", "KeyType": "RANGE"},
            ],
            "ByTime": [
                {"AttributeName": "Bucket", "KeyType": "HASH"},
                {"AttributeName": "SortId", "KeyType": "RANGE"},
            ],
        }
        for index in table["GlobalSecondaryIndexes"]:
            assert index["Projection"] == {
                "ProjectionType": "INCLUDE",
                "NonKeyAttributes": ["Username", "Timestamp", "RuleTags", "ExpiresAt"],
            }

    def test_table_is_billed_by_use_encrypted_and_forgets(self) -> None:
        """A new account pays nothing for a table at rest, and posts expire."""
        table = render()["EventDataTable"]
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["SSESpecification"] == {"SSEEnabled": True}
        assert table["TimeToLiveSpecification"] == {"AttributeName": "ExpiresAt", "Enabled": True}


class TestFailureBucket:
    def test_bucket_is_closed_encrypted_and_expires(self) -> None:
        """Failed posts are nobody else's business, and do not outlive the others."""
        bucket = render()["FailureBucket"]
        encryption = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert encryption == [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert len(bucket["PublicAccessBlockConfiguration"]) == 4
        assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
        assert bucket["LifecycleConfiguration"]["Rules"][0]["Status"] == "Enabled"
        assert "BucketName" not in bucket

    def test_bucket_refuses_plain_http(self) -> None:
        """Whoever comes without TLS is denied, whatever else they may do."""
        policy = render()["FailureBucketPolicy"]
        assert policy["Bucket"] == "${FailureBucket}"
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement == {
            "Sid": "OnlyOverTls",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": ["${FailureBucket.Arn}", "${FailureBucket.Arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }


class TestPermissions:
    def test_policies_hang_where_they_should(self) -> None:
        """Each role and the group has its one managed policy; the user has none of its own."""
        stack = render(**{**FULL, "PermissionsBoundaryArn": ""})
        identity = {
            name: {key: value for key, value in resource.items() if key not in {"Type", "AssumeRolePolicyDocument"}}
            for name, resource in stack.items()
            if resource.get("Type") in {"AWS::IAM::Role", "AWS::IAM::Group", "AWS::IAM::User"}
        }
        assert identity == {
            "DDBEventProcessorRole": {"ManagedPolicyArns": ["${DDBEventProcessorPolicy}"]},
            "CleanupRole": {"ManagedPolicyArns": ["${CleanupPolicy}"]},
            "ProducerExecutionRole": {"ManagedPolicyArns": ["${ProducerExecutionPolicy}"]},
            "ProducerRole": {"ManagedPolicyArns": ["${StreamClientPolicy}"]},
            "StreamClientGroup": {"ManagedPolicyArns": ["${StreamClientPolicy}"]},
            "StreamClient": {"Groups": ["${StreamClientGroup}"]},
        }
        assert stack["DDBEventProcessor"]["Role"] == "${DDBEventProcessorRole.Arn}"
        assert stack["Cleanup"]["Role"] == "${CleanupRole.Arn}"
        assert stack["ProducerTask"]["ExecutionRoleArn"] == "${ProducerExecutionRole.Arn}"
        assert stack["ProducerTask"]["TaskRoleArn"] == "${ProducerRole.Arn}"
        assert stack["StreamClientKey"]["UserName"] == "${StreamClient}"

    @pytest.mark.parametrize(
        ("role", "service"),
        [
            ("DDBEventProcessorRole", "lambda"),
            ("CleanupRole", "lambda"),
            ("ProducerExecutionRole", "ecs-tasks"),
            ("ProducerRole", "ecs-tasks"),
        ],
    )
    def test_only_its_service_takes_a_role(self, role: str, service: str) -> None:
        """Nobody but Lambda may act as a function, and nobody but ECS as a task."""
        assert render(**FULL)[role]["AssumeRolePolicyDocument"]["Statement"] == [
            {"Effect": "Allow", "Principal": {"Service": f"{service}.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ]

    def test_unnamed_iam_resources_need_no_more_than_capability_iam(self) -> None:
        """CloudFormation asks for CAPABILITY_NAMED_IAM as soon as one of these has a name."""
        names = {"GroupName", "ManagedPolicyName", "PolicyName", "RoleName", "UserName"}
        for resource in render().values():
            if resource.get("Type", "").startswith("AWS::IAM::") and resource["Type"] != "AWS::IAM::AccessKey":
                assert not names & resource.keys()


class Answers(BaseHTTPRequestHandler):
    """CloudFormation's side of a custom resource; as S3, it denies everything."""

    received: Received

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append((dict(self.headers.items()), body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>No.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        pass


class Context:
    """Lambda's context, with so many milliseconds left."""

    def __init__(self, milliseconds: int = 900_000) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


class FakeS3:
    """A bucket of object versions that pages, and may refuse to delete a key; boto3's client as far as it is used."""

    exceptions = SimpleNamespace(NoSuchBucket=FileNotFoundError)

    def __init__(self, versions: int, *, bucket: str = "failures", locked: str = "") -> None:
        self.bucket = bucket
        self.locked = locked
        self.objects = [(f"key-{number // 2}", f"version-{number}") for number in range(versions)]

    def get_paginator(self, operation: str) -> "FakeS3":
        assert operation == "list_object_versions"
        return self

    def paginate(self, *, Bucket: str) -> Iterator[dict[str, Any]]:  # noqa: N803  # boto3's name for it
        if self.bucket != Bucket:
            raise self.exceptions.NoSuchBucket(Bucket)
        listed = [{"Key": key, "VersionId": version} for key, version in self.objects]
        for start in range(0, len(listed) or 1, 1000):
            page = listed[start : start + 1000]
            # As S3: a kind of which a page has none is not in it at all.
            kinds = {"Versions": page[::2], "DeleteMarkers": page[1::2]}
            yield {kind: entries for kind, entries in kinds.items() if entries}

    def delete_objects(self, *, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:  # noqa: N803  # boto3's names
        assert self.bucket == Bucket
        asked = [(entry["Key"], entry["VersionId"]) for entry in Delete["Objects"]]
        assert 1 <= len(asked) <= 1000
        assert Delete["Quiet"]
        refused = [{"Key": key, "Code": "AccessDenied"} for key, _ in asked if key == self.locked]
        self.objects = [entry for entry in self.objects if entry not in asked or entry[0] == self.locked]
        return {"Errors": refused} if refused else {}


CLEANUP = RESOURCES["Cleanup"]["Properties"]
EVENT = {
    "RequestType": "Delete",
    "StackId": "arn:stack/mill",
    "RequestId": "request",
    "LogicalResourceId": "FailureBucketCleanup",
    "PhysicalResourceId": "failures",
    "ResourceProperties": {"ServiceToken": "arn", "BucketName": "failures"},
}


class TestCleanup:
    @pytest.fixture
    def answers(self) -> Iterator[tuple[str, Received]]:
        """Address of a server for the answer, and what came there."""
        handler = type("Recorder", (Answers,), {"received": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.received  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.fixture
    def s3(self) -> Iterator[str]:
        """Address of an S3."""
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()

    @pytest.fixture
    def empty(self) -> Any:
        """The function of the inline code that does the work."""
        namespace: dict[str, Any] = {}
        exec(compile(CLEANUP["Code"]["ZipFile"], "index.py", "exec"), namespace)
        return namespace["empty"]

    def invoke(self, folder: Path, s3: str, event: Mapping[str, Any]) -> str:
        """Run the inline code as Lambda does, as module index with credentials in the environment; return its log."""
        module, function = CLEANUP["Handler"].split(".")
        (folder / f"{module}.py").write_text(CLEANUP["Code"]["ZipFile"], encoding="utf-8")
        call = (
            f"import json, sys, types, {module}\n"
            "context = types.SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)\n"
            f"{module}.{function}(json.loads(sys.argv[1]), context)"
        )
        environment = {
            "AWS_ENDPOINT_URL_S3": s3,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        command = [sys.executable, "-c", call, json.dumps(event)]
        done = subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def test_delete_empties_a_versioned_bucket(self, tmp_path: Path, s3: str, answers: tuple[str, Received]) -> None:
        """All versions and delete markers go, so that the bucket itself can be deleted, and the answer says so."""
        client = boto3.client(
            "s3",
            endpoint_url=s3,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        client.create_bucket(Bucket="failures")
        client.put_bucket_versioning(Bucket="failures", VersioningConfiguration={"Status": "Enabled"})
        for key in ("quarantine/a b.json", "quarantine/水車", "quarantine/a b.json"):
            client.put_object(Bucket="failures", Key=key, Body=b"{}")
        client.delete_object(Bucket="failures", Key="quarantine/水車")

        address, received = answers
        self.invoke(tmp_path, s3, {**EVENT, "ResponseURL": f"{address}/answer"})

        ((headers, answer),) = received
        assert answer == {
            "Status": "SUCCESS",
            "Reason": "",
            "PhysicalResourceId": "failures",
            "StackId": "arn:stack/mill",
            "RequestId": "request",
            "LogicalResourceId": "FailureBucketCleanup",
        }
        assert headers["Content-Type"] == ""
        client.delete_bucket(Bucket="failures")

    def test_failure_is_answered_with_its_reason(self, tmp_path: Path, answers: tuple[str, Received]) -> None:
        """When S3 refuses, CloudFormation is told at once instead of waiting for its time limit."""
        address, received = answers
        log = self.invoke(tmp_path, address, {**EVENT, "ResponseURL": f"{address}/answer"})
        ((_, answer),) = received
        assert answer["Status"] == "FAILED"
        assert answer["PhysicalResourceId"] == "failures"
        assert answer["Reason"].startswith("failures is not empty yet: An error occurred (AccessDenied)")
        assert answer["Reason"] in log

    @pytest.mark.parametrize("request_type", ["Create", "Update"])
    def test_only_delete_touches_the_bucket(
        self,
        tmp_path: Path,
        answers: tuple[str, Received],
        request_type: str,
    ) -> None:
        """Creating and updating the stack succeed without a word to S3, which here would refuse."""
        address, received = answers
        event = {**EVENT, "RequestType": request_type, "ResponseURL": f"{address}/answer"}
        self.invoke(tmp_path, address, event)
        ((_, answer),) = received
        assert (answer["Status"], answer["PhysicalResourceId"]) == ("SUCCESS", "failures")

    @pytest.mark.parametrize("versions", [0, 1, 1000, 2501])
    def test_every_page_is_emptied(self, empty: Any, versions: int) -> None:
        """Whatever the number of versions, none is left, and no request deletes more than S3 takes."""
        s3 = FakeS3(versions)
        empty(s3, "failures", Context())
        assert s3.objects == []

    def test_object_that_stays_is_an_error(self, empty: Any) -> None:
        """S3 answers 200 with errors inside; they are not taken for success."""
        with pytest.raises(RuntimeError, match="AccessDenied at key-3"):
            empty(FakeS3(10, locked="key-3"), "failures", Context())

    def test_end_of_time_is_an_error_that_says_what_to_do(self, empty: Any) -> None:
        """Before Lambda ends the function without an answer, it stops by itself."""
        s3 = FakeS3(10)
        with pytest.raises(TimeoutError, match="delete the stack again"):
            empty(s3, "failures", Context(milliseconds=1_000))
        assert len(s3.objects) == 10

    def test_bucket_that_is_gone_is_empty(self, empty: Any) -> None:
        """A bucket that somebody deleted by hand does not hold up the stack."""
        empty(FakeS3(0, bucket="another"), "failures", Context())

    def test_cloudformation_waits_longer_than_the_function_runs(self) -> None:
        """The stack outlasts the function's time limit, and not by the hour that is the default."""
        stack = render()
        limit, patience = stack["Cleanup"]["Timeout"], stack["FailureBucketCleanup"]["ServiceTimeout"]
        assert limit < patience <= limit + 60
