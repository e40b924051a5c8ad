"""AWS on this machine for the tests of the deployment: moto, and the template as far as moto's CloudFormation goes."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from moto.moto_api._internal.models import moto_api_backend
from moto.server import ThreadedMotoServer

from tests.deploy.rendering import DOCUMENT, references

REGION = "eu-west-1"
# What moto 5.2 cannot make. It would take the first kinds without a word and fail where they are referred to; for the
# last one, whose code has its own tests, it wants Docker.
NOT_IN_MOTO = {
    "AWS::CloudWatch::Alarm",
    "AWS::IAM::Group",
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::Secret",
    "AWS::SNS::Subscription",
    "Custom::EmptyBucket",
}


class LocalSession:
    """boto3's session, with all clients at one address."""

    region_name = REGION

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, service: str, **options: Any) -> Any:
        """Return a client of moto."""
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=self.url,
            region_name=self.region_name,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            **options,
        )


@cache
def _url() -> str:
    """Start moto, for as long as this process lives: to stop it takes half a second."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # By this name moto knows that a bucket's name stands in the path of an address.
    return f"http://localhost:{port}"


@contextmanager
def moto() -> Iterator[LocalSession]:
    """Give an empty AWS, and empty it again."""
    try:
        yield LocalSession(_url())
    finally:
        moto_api_backend.reset()


def as_lambda(
    folder: Path, handler: str, variables: Mapping[str, str], url: str, event: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """Run a function as Lambda does, in a process with its code and variables; return its answer and its log."""
    module, _, function = handler.rpartition(".")
    call = (
        f"import json, sys, types\nfrom {module} import {function}\n"
        "context = types.SimpleNamespace(aws_request_id='r', get_remaining_time_in_millis=lambda: 60_000)\n"
        f"print(json.dumps({function}(json.loads(sys.argv[1]), context)))"
    )
    command = [sys.executable, "-c", call, json.dumps(event)]
    environment = {**environment_of(url), **variables, "TMPDIR": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    *log, answer = done.stdout.splitlines()
    return json.loads(answer), log


def environment_of(url: str) -> dict[str, str]:
    """Return the variables that lead any program to this AWS, and to no other."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def event_of(*records: bytes) -> dict[str, Any]:
    """Return these records as Lambda gives them to a function."""
    return {
        "Records": [
            {
                "eventID": f"shardId-000000000000:{number}",
                "eventSourceARN": f"arn:aws:kinesis:{REGION}:123456789012:stream/s",
                "kinesis": {
                    "sequenceNumber": str(number),
                    "partitionKey": "7",
                    "approximateArrivalTimestamp": 1_700_000_000.0,
                    "data": b64encode(record).decode(),
                },
            }
            for number, record in enumerate(records, 1)
        ]
    }


def for_moto() -> dict[str, Any]:
    """Return the template without what moto cannot make, and without what refers to that."""
    missing = {name for name, resource in DOCUMENT["Resources"].items() if resource["Type"] in NOT_IN_MOTO}
    kept: dict[str, Any] = {}
    for name, resource in DOCUMENT["Resources"].items():
        if name not in missing:
            kept[name] = {key: value for key, value in resource.items() if key != "DependsOn"}
            kept[name]["Properties"] = _without(resource.get("Properties", {}), missing)
    # It would be of the alarms, which are missing.
    kept["Dashboard"]["Properties"]["DashboardBody"] = "{}"
    # CloudFormation makes texts of the numbers there, and moto gives them on as they come.
    variables = kept["DDBEventProcessor"]["Properties"]["Environment"]["Variables"]
    for name, value in variables.items():
        if isinstance(value, dict) and "Ref" in value:
            variables[name] = {"Fn::Sub": f"${{{value['Ref']}}}"}
    # CloudFormation makes a truth value of the text "false", and moto takes it for true.
    kept["EventDataTable"]["Properties"]["DeletionProtectionEnabled"] = False
    outputs = {name: output for name, output in DOCUMENT["Outputs"].items() if not references(output) & missing}
    return {**DOCUMENT, "Resources": kept, "Outputs": outputs}


def _without(node: Any, missing: set[str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _without(value, missing) for key, value in node.items() if not _is_about(value, missing)}
    if isinstance(node, list):
        return [_without(value, missing) for value in node if not _is_about(value, missing)]
    return node


def _is_about(node: Any, missing: set[str]) -> bool:
    return isinstance(node, Mapping) and node.keys() <= {"Ref", "Fn::GetAtt"} and bool(references(node) & missing)
