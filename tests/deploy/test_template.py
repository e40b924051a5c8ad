import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from local.template import TEMPLATE, Template
from service.config import load
from tests.deploy.checks_parameters import CHANGES, SWITCHES
from tests.deploy.rendering import CODE, DOCUMENT, FULL, leaves, needs, render, symbol

RESOURCES = DOCUMENT["Resources"]


def test_template_fits_into_one_object() -> None:
    """CloudFormation takes a template of up to 1 MB out of a bucket, with up to 200 parameters and 500 resources."""
    assert TEMPLATE.stat().st_size < 1_000_000
    assert len(DOCUMENT["Parameters"]) <= 200
    assert len(RESOURCES) <= 500


class TestParameters:
    def test_each_is_grouped_once(self) -> None:
        """The console shows every parameter under a heading."""
        groups = DOCUMENT["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
        grouped = [name for group in groups for name in group["Parameters"]]
        assert sorted(grouped) == sorted(DOCUMENT["Parameters"])
        assert all(group["Label"]["default"] for group in groups)

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
