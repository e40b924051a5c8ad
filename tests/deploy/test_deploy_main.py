import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.credentials import EnvProvider
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, NoRegionError

from deploy.__main__ import main, next_steps
from deploy.package import package
from tests.deploy.emulator import LocalSession, environment_of, for_moto

ROOT = Path(__file__).parents[2]
TEMPLATE = json.dumps(for_moto())


class Broken:
    """A session in which nothing works, always in the same way."""

    region_name = "eu-west-1"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def client(self, *_: str, **__: Any) -> Any:
        raise self.error


def test_stack_comes_up_and_goes_down(session: LocalSession, capsys: pytest.CaptureFixture[str]) -> None:
    """One command makes bucket, code and stack and says what comes next; one command takes all of it away."""
    given = ["AlarmEmail=me@example.org", "FunctionMemory=1769"]
    assert main(["up", "mill", *given], session=session, template=TEMPLATE) == 0
    said = capsys.readouterr().out
    assert "  me@example.org gets a message first" in said
    assert "  .venv/bin/python -m processor --stack mill latest\n" in said
    assert "  make undeploy STACK=mill\n" in said
    function = session.client("lambda").get_function(FunctionName="mill-DDBEventProcessor")["Configuration"]
    assert function["MemorySize"] == 1769
    assert function["CodeSize"] == len(package())
    s3 = session.client("s3")
    (bucket,) = [
        bucket["Name"] for bucket in s3.list_buckets()["Buckets"] if bucket["Name"].startswith("millrace-code")
    ]
    assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == 2

    assert main(["down", "mill"], session=session) == 0
    assert capsys.readouterr().out.endswith("mill is gone\n")
    assert s3.list_buckets()["Buckets"] == []
    assert session.client("dynamodb").list_tables()["TableNames"] == []


def test_change_leaves_only_the_new_code(session: LocalSession, capsys: pytest.CaptureFixture[str]) -> None:
    """What an older deployment uploaded goes when a newer one has succeeded."""
    # moto looks at no condition when it changes a stack, so it gets what has none.
    document = for_moto()
    for section in ("Resources", "Outputs"):
        document[section] = {name: one for name, one in document[section].items() if "Condition" not in one}
    assert main(["up", "mill"], session=session, template=json.dumps(document)) == 0
    assert main(["up", "mill", "BatchSize=7"], session=session, template=json.dumps(document) + " ") == 0
    (mapping,) = session.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert mapping["BatchSize"] == 7
    s3 = session.client("s3")
    bucket = f"millrace-code-123456789012-{session.region_name}"
    assert len(s3.list_objects_v2(Bucket=bucket)["Contents"]) == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NoCredentialsError(), "there are no credentials: set AWS_PROFILE"),
        (NoRegionError(), "there is no region: set AWS_REGION"),
        (EndpointConnectionError(endpoint_url="https://sts.eu-wst-1.amazonaws.com/"), "the spelling of AWS_REGION"),
        (ClientError({"Error": {"Code": "ExpiredToken", "Message": "x"}}, "GetCallerIdentity"), "out of date"),
        (ClientError({"Error": {"Code": "AccessDenied", "Message": "may not"}}, "CreateStack"), "AWS refuses"),
    ],
)
@pytest.mark.parametrize("command", ["up", "down"])
def test_trouble_with_aws_is_one_line(
    command: str, error: Exception, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever AWS or botocore says is one line with the way out where it is known, and exit code 1."""
    assert main([command, "mill"], session=Broken(error)) == 1
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1


def test_region_and_endpoint_are_those_of_the_environment(session: LocalSession) -> None:
    """From the command line, AWS_REGION and AWS_ENDPOINT_URL say where the stack is."""
    where = environment_of(session.url)
    for environment, text in (
        (where, "there is no stack mill in eu-west-1"),
        ({**where, "AWS_REGION": ""}, "set AWS_REGION"),
    ):
        command = [sys.executable, "-m", "deploy", "env", "mill"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["up"], ["up", "mill", "ShardCount"], ["down", "mill", "more"], ["help"]])
def test_wrong_command_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Anything but a command is answered with all of them."""
    assert main(arguments) == 2
    assert "python -m deploy up STACK" in capsys.readouterr().err


def test_wrong_name_is_one_line(session: LocalSession, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no stack can have is told before anything is made."""
    assert main(["up", "my_stack"], session=session) == 1
    assert "at most 46" in capsys.readouterr().err
    assert session.client("s3").list_buckets()["Buckets"] == []


def test_unknown_parameter_is_told_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt parameter is named, with those that there are; AWS hears nothing of it."""
    assert main(["up", "mill", "ShardsCount=2"], session=Broken(AssertionError("asked"))) == 1
    assert "ShardsCount is no parameter of the template; there are: " in capsys.readouterr().err


def test_quickstart_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template for the console goes into the file that is named; a file that cannot be is told."""
    assert main(["quickstart", str(tmp_path / "quickstart.yaml")]) == 0
    assert (tmp_path / "quickstart.yaml").read_text(encoding="utf-8").startswith("AWSTemplateFormatVersion")
    assert main(["quickstart", str(tmp_path / "no" / "where")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


class TestEnv:
    def stack(self, session: LocalSession, **outputs: str) -> None:
        """Make a stack with these outputs."""
        document = {
            "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {name: {"Value": value} for name, value in {"Region": "eu-west-1", **outputs}.items()},
        }
        session.client("cloudformation").create_stack(StackName="mill", TemplateBody=json.dumps(document))

    def test_variables_are_lines_for_a_shell(self, session: LocalSession, capsys: pytest.CaptureFixture[str]) -> None:
        """What the secret holds is printed under its names, in quotes where a shell needs them."""
        text = json.dumps({"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "a/b+c=", "MILLRACE_STREAM": "my s"})
        secret = session.client("secretsmanager").create_secret(Name="client", SecretString=text)
        self.stack(session, CredentialsSecretArn=secret["ARN"])
        assert main(["env", "mill"], session=session) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ["AWS_SESSION_TOKEN=", "AWS_CREDENTIAL_EXPIRATION="]
        assert lines[2:] == ["AWS_ACCESS_KEY_ID=AKIA", "AWS_SECRET_ACCESS_KEY=a/b+c=", "MILLRACE_STREAM='my s'"]

    def test_no_part_of_other_credentials_stays(
        self, session: LocalSession, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The token of who reads the secret by temporary credentials would go along with the client's key."""
        text = json.dumps({"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "a/b+c="})
        secret = session.client("secretsmanager").create_secret(Name="client", SecretString=text)
        self.stack(session, CredentialsSecretArn=secret["ARN"])
        assert main(["env", "mill"], session=session) == 0
        before = {"AWS_SESSION_TOKEN": "temporary", "AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00Z"}
        command = ["bash", "-c", 'set -a; eval "$1"; env', "bash", capsys.readouterr().out]
        after = subprocess.run(command, env=os.environ | before, capture_output=True, text=True, check=True).stdout
        found = EnvProvider(dict(line.split("=", 1) for line in after.splitlines() if line.startswith("AWS_"))).load()
        assert found is not None
        assert (found.access_key, found.secret_key, found.token) == ("AKIA", "a/b+c=", None)

    def test_stack_without_a_client_has_none(self, session: LocalSession, capsys: pytest.CaptureFixture[str]) -> None:
        """Where there is no user, there is nothing to print but why."""
        self.stack(session)
        assert main(["env", "mill"], session=session) == 1
        assert "CreateClient is false" in capsys.readouterr().err

    def test_stack_that_is_not_there_is_told(self, session: LocalSession, capsys: pytest.CaptureFixture[str]) -> None:
        """A wrong name or region is said in a line, with the region."""
        assert main(["env", "mill"], session=session) == 1
        assert "there is no stack mill in eu-west-1" in capsys.readouterr().err


class TestNextSteps:
    def test_client_gets_its_credentials(self) -> None:
        """Where there is a client, the command that shows its secret comes first; the secret itself never."""
        steps = next_steps("mill", {"TableName": "mill-EventData", "CredentialsCommand": "aws secretsmanager ..."})
        assert steps[steps.index("Next:") + 1] == '  set -a; eval "$(.venv/bin/python -m deploy env mill)"; set +a'
        assert any("service check" in line for line in steps)

    def test_service_needs_no_daemon(self) -> None:
        """Where the daemon is a service, it is looked at instead of started."""
        steps = next_steps("mill", {"ProducerService": "service", "CredentialsCommand": "aws secretsmanager ..."})
        assert "  look into the log group /millrace/mill" in steps
        assert not any("python -m service" in line for line in steps)

    def test_role_needs_no_credentials(self) -> None:
        """Without a client, the daemon runs with what it has."""
        steps = next_steps("mill", {"TableName": "mill-EventData"})
        assert any("service check" in line for line in steps)
        assert not any("deploy env" in line for line in steps)
