"""AWS on this machine for the tests of the deployment: moto, and the template as far as moto's CloudFormation goes."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        self._url = url

    def client(self, service: str, **options: Any) -> Any:
        """Return a client of moto."""
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=self._url,
            region_name=self.region_name,
            aws_access_key_id="local",
            aws_secret_access_key="local",
            **options,
        )


@contextmanager
def moto() -> Iterator[LocalSession]:
    """Run an empty AWS."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # By this name moto knows that a bucket's name stands in the path of an address.
    session = LocalSession(f"http://localhost:{port}")
    try:
        yield session
    finally:
        server.stop()
        # What moto holds belongs to the process.
        moto_api_backend.reset()


def for_moto(document: Mapping[str, Any] = DOCUMENT) -> dict[str, Any]:
    """Return the template without what moto cannot make, and without what refers to that."""
    missing = {name for name, resource in document["Resources"].items() if resource["Type"] in NOT_IN_MOTO}
    kept: dict[str, Any] = {}
    for name, resource in document["Resources"].items():
        if name not in missing:
            kept[name] = {key: value for key, value in resource.items() if key != "DependsOn"}
            kept[name]["Properties"] = _without(resource.get("Properties", {}), missing)
    # It would be of the alarms, which are missing.
    kept["Dashboard"]["Properties"]["DashboardBody"] = "{}"
    # CloudFormation makes a truth value of the text "false", and moto takes it for true.
    kept["EventDataTable"]["Properties"]["DeletionProtectionEnabled"] = False
    outputs = {name: output for name, output in document["Outputs"].items() if not references(output) & missing}
    return {**document, "Resources": kept, "Outputs": outputs}


def _without(node: Any, missing: set[str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _without(value, missing) for key, value in node.items() if not _is_about(value, missing)}
    if isinstance(node, list):
        return [_without(value, missing) for value in node if not _is_about(value, missing)]
    return node


def _is_about(node: Any, missing: set[str]) -> bool:
    return isinstance(node, Mapping) and node.keys() <= {"Ref", "Fn::GetAtt"} and bool(references(node) & missing)


def as_text(document: Mapping[str, Any]) -> str:
    """Return a template as it is sent."""
    return json.dumps(document)
