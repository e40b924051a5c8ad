"""The stack as far as moto goes: made through its CloudFormation, or by the calls that CloudFormation would make."""

import json
import time
from collections.abc import Iterator, Mapping
from io import BytesIO, StringIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from deploy.package import package
from deploy.stack import Stack
from processor.__main__ import main as console
from processor.items import SNOWFLAKE_EPOCH_MILLISECONDS, SNOWFLAKE_SEQUENCE_BITS
from service.config import load
from tests.deploy.emulator import (
    NOT_IN_MOTO,
    LocalSession,
    as_lambda,
    environment_of,
    event_of,
    for_moto,
    moto,
)
from tests.deploy.rendering import DOCUMENT, FULL, references, render


@pytest.fixture(scope="module")
def session() -> Iterator[LocalSession]:
    """An AWS with a bucket for code and template."""
    with moto() as session:
        s3 = session.client("s3")
        s3.create_bucket(Bucket="code", CreateBucketConfiguration={"LocationConstraint": session.region_name})
        s3.put_object(Bucket="code", Key="1.zip", Body=package())
        s3.put_object(Bucket="code", Key="template", Body=json.dumps(for_moto()).encode())
        yield session


def parameters_of(session: LocalSession) -> dict[str, str]:
    """Return values that switch everything on, with a network that there is."""
    ec2 = session.client("ec2")
    network = {
        "ProducerVpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
        "ProducerSubnets": ",".join(subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]),
    }
    posts = {"IdPointer": "", "TimePointer": ""}
    return {name: str(value) for name, value in {**FULL, **network, **posts, "PermissionsBoundaryArn": ""}.items()}


def everything(session: LocalSession) -> dict[str, list[str]]:
    """Return what there is in an account of the kinds that a stack makes."""
    found = {
        "dynamodb": session.client("dynamodb").list_tables()["TableNames"],
        "kinesis": session.client("kinesis").list_streams()["StreamNames"],
        "lambda": [one["FunctionName"] for one in session.client("lambda").list_functions()["Functions"]],
        "mapping": [
            one["UUID"] for one in session.client("lambda").list_event_source_mappings()["EventSourceMappings"]
        ],
        "s3": [one["Name"] for one in session.client("s3").list_buckets()["Buckets"] if one["Name"] != "code"],
        "logs": [one["logGroupName"] for one in session.client("logs").describe_log_groups()["logGroups"]],
        "role": [one["RoleName"] for one in session.client("iam").list_roles()["Roles"]],
        "user": [one["UserName"] for one in session.client("iam").list_users()["Users"]],
        "policy": [one["PolicyName"] for one in session.client("iam").list_policies(Scope="Local")["Policies"]],
        "topic": [one["TopicArn"] for one in session.client("sns").list_topics()["Topics"]],
        "dashboard": [
            one["DashboardName"] for one in session.client("cloudwatch").list_dashboards()["DashboardEntries"]
        ],
        "cluster": session.client("ecs").list_clusters()["clusterArns"],
    }
    return {kind: names for kind, names in found.items() if names}


class TestInMoto:
    """The stack, really made through CloudFormation as far as moto goes, and deleted."""

    def test_what_moto_cannot_make_is_known(self) -> None:
        """All but these kinds of resources, and what is about them, is made here."""
        made = {resource["Type"] for resource in for_moto()["Resources"].values()}
        assert {resource["Type"] for resource in DOCUMENT["Resources"].values()} - made == NOT_IN_MOTO
        gone = DOCUMENT["Outputs"].keys() - for_moto()["Outputs"].keys()
        assert gone == {"CredentialsSecretArn", "CredentialsCommand"}
        assert references(for_moto()["Resources"]) & DOCUMENT["Resources"].keys() <= for_moto()["Resources"].keys()

    def test_stack_is_made_works_and_is_deleted(self, session: LocalSession, tmp_path: Path) -> None:
        """All of it is made with the names that were promised, and nothing stays behind but what moto cannot delete."""
        lines: list[str] = []
        stack = Stack("Mill", session.client("cloudformation"), say=lines.append)
        url = session.client("s3").generate_presigned_url("get_object", Params={"Bucket": "code", "Key": "template"})
        stack.deploy(url.partition("?")[0], DOCUMENT["Parameters"], parameters_of(session))

        outputs = stack.outputs()
        made = everything(session)
        assert made["dynamodb"] == [outputs["TableName"]] == ["Mill-EventData"]
        assert set(made["lambda"]) == {outputs["FunctionName"], "Mill-Cleanup"}
        assert outputs["FunctionName"] == "Mill-DDBEventProcessor"
        assert made["kinesis"] == [outputs["StreamName"]]
        assert made["s3"] == [outputs["FailureBucket"]]
        assert made["logs"] == ["/aws/lambda/Mill-Cleanup", "/aws/lambda/Mill-DDBEventProcessor", "/millrace/Mill"]
        assert {kind: len(names) for kind, names in made.items()} == {
            "dynamodb": 1,
            "kinesis": 1,
            "lambda": 2,
            "mapping": 1,
            "s3": 1,
            "logs": 3,
            "role": 4,
            "user": 1,
            "policy": 4,
            "topic": 1,
            "dashboard": 1,
            "cluster": 1,
        }
        self.check_mapping(session)
        self.check_service(session, outputs)
        self.check_function(session, tmp_path)
        table = session.client("dynamodb").describe_table(TableName=outputs["TableName"])["Table"]
        assert {index["IndexName"] for index in table["GlobalSecondaryIndexes"]} == {"ByAuthor", "ByTime"}

        stack.delete()
        left = everything(session)
        assert left.keys() == {"policy", "cluster"}
        assert lines[-1].split()[0] == "DELETE_COMPLETE"
        assert stack.outputs() == {}

    @staticmethod
    def check_function(session: LocalSession, folder: Path) -> None:
        """The deployed code, with what the stack tells it, stores a post and keeps what is none; both are found."""
        function = session.client("lambda").get_function_configuration(FunctionName="Mill-DDBEventProcessor")
        with ZipFile(BytesIO(session.client("s3").get_object(Bucket="code", Key="1.zip")["Body"].read())) as code:
            code.extractall(folder)
        # The console shows nothing that has expired, so it is a post of now.
        post_id = str((int(time.time() * 1000) - SNOWFLAKE_EPOCH_MILLISECONDS) << SNOWFLAKE_SEQUENCE_BITS)
        post = {"data": {"id": post_id, "text": "水車", "author_id": "7"}}
        event = event_of(json.dumps(post).encode(), b"poison")
        variables = function["Environment"]["Variables"]
        answer, _ = as_lambda(folder, function["Handler"], variables, session.url, event)
        assert answer == {"batchItemFailures": []}
        output = StringIO()
        where = environment_of(session.url)
        assert console(["--stack", "Mill", "get", post_id], where, output=output, errors=StringIO()) == 0
        assert json.loads(output.getvalue())["Message"] == "水車"
        place = variables["QUARANTINE"].removeprefix("s3://").partition("/")
        (kept,) = session.client("s3").list_objects_v2(Bucket=place[0], Prefix=place[2])["Contents"]
        assert kept["Key"].endswith("/2-0.json")
        session.client("s3").delete_object(Bucket=place[0], Key=kept["Key"])  # as the cleanup does

    @staticmethod
    def check_mapping(session: LocalSession) -> None:
        """The mapping in the account is the template's, to the setting."""
        (mapping,) = session.client("lambda").list_event_source_mappings()["EventSourceMappings"]
        assert mapping["BatchSize"] == 500
        assert mapping["MaximumRetryAttempts"] == 10
        assert mapping["MaximumRecordAgeInSeconds"] == 72_000
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert mapping["BisectBatchOnFunctionError"] is True
        assert mapping["DestinationConfig"]["OnFailure"]["Destination"].startswith("arn:aws:s3:::mill-failurebucket-")

    @staticmethod
    def check_service(session: LocalSession, outputs: Mapping[str, str]) -> None:
        """The service in the account is one task with the stream and the token of the stack."""
        ecs = session.client("ecs")
        (service,) = ecs.describe_services(cluster=outputs["ProducerCluster"], services=[outputs["ProducerService"]])[
            "services"
        ]
        assert service["desiredCount"] == 1
        task = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
        (container,) = task["containerDefinitions"]
        environment = {pair["name"]: pair["value"] for pair in container["environment"]}
        assert environment["MILLRACE_STREAM"] == outputs["StreamName"]
        assert container["secrets"] == [{"name": "MILLRACE_BEARER_TOKEN", "valueFrom": FULL["ProducerTokenSecretArn"]}]


class TestByApi:
    """What moto's CloudFormation cannot make, made by the calls that CloudFormation would make."""

    def test_cloudwatch_takes_every_alarm(self, session: LocalSession) -> None:
        """The properties of each alarm are good arguments of PutMetricAlarm, and come back as they were."""
        stack = render(**FULL)
        alarms = {name: dict(item) for name, item in stack.items() if item.get("Type") == "AWS::CloudWatch::Alarm"}
        cloudwatch = session.client("cloudwatch")
        for name, alarm in alarms.items():
            del alarm["Type"]
            cloudwatch.put_metric_alarm(AlarmName=name, **alarm)
        made = {alarm["AlarmName"]: alarm for alarm in cloudwatch.describe_alarms()["MetricAlarms"]}
        assert made.keys() == alarms.keys()
        for name, alarm in alarms.items():
            assert {key: made[name][key] for key in alarm} == alarm

    def test_client_has_what_its_group_may(self, session: LocalSession) -> None:
        """Group, user and secret are made as the template has them, and the secret gives the daemon its variables."""
        stack = render()
        iam = session.client("iam")
        stream = f"arn:aws:kinesis:{session.region_name}:123456789012:stream/stream"
        policy = json.dumps(stack["StreamClientPolicy"]["PolicyDocument"]).replace("${EventStream.Arn}", stream)
        arn = iam.create_policy(PolicyName="client", PolicyDocument=policy)["Policy"]["Arn"]
        iam.create_group(GroupName="group")
        iam.attach_group_policy(GroupName="group", PolicyArn=arn)
        iam.create_user(UserName="client")
        iam.add_user_to_group(GroupName="group", UserName="client")
        key = iam.create_access_key(UserName="client")["AccessKey"]
        text = stack["StreamClientCredentials"]["SecretString"]
        for place, value in (
            ("${StreamClientKey}", key["AccessKeyId"]),
            ("${StreamClientKey.SecretAccessKey}", key["SecretAccessKey"]),
            ("${AWS::Region}", session.region_name),
            ("${EventStream}", "stream"),
        ):
            text = text.replace(place, value)
        secret = session.client("secretsmanager").create_secret(Name="client", SecretString=text)
        told = json.loads(session.client("secretsmanager").get_secret_value(SecretId=secret["ARN"])["SecretString"])
        settings = load({**told, "MILLRACE_BEARER_TOKEN": "token"})
        assert (settings.stream, settings.lanes_per_shard) == ("stream", 1)
        assert told["AWS_SECRET_ACCESS_KEY"] == key["SecretAccessKey"]

    def test_bucket_takes_its_policy(self, session: LocalSession) -> None:
        """The policy is one that S3 takes, and it denies what comes without TLS."""
        s3 = session.client("s3")
        document = json.dumps(render()["FailureBucketPolicy"]["PolicyDocument"])
        s3.put_bucket_policy(Bucket="code", Policy=document.replace("${FailureBucket.Arn}", "arn:aws:s3:::code"))
        (statement,) = json.loads(s3.get_bucket_policy(Bucket="code")["Policy"])["Statement"]
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        s3.delete_bucket_policy(Bucket="code")
