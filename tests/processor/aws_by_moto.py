"""AWS by moto, for boto3's own words: it knows expressions and indexes, and never throttles."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count

import boto3

from local import ACCESS_KEY, REGION, SECRET_KEY
from local.template import load
from processor.failures import connect_bucket
from processor.items import Item
from processor.reader import connect_reader, location_of, plain
from tests.processor.fake_dynamodb import typed


class Aws:
    """
    DynamoDB and S3 at one address, each with a client.

    What moto holds belongs to the process: each table has a name of its own, and so must each bucket.
    """

    def __init__(self, url: str) -> None:
        self.environ = {
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        self.dynamodb = connect_reader(**location_of(self.environ, "dynamodb"))
        self.s3 = connect_bucket(**location_of(self.environ, "s3"))
        self._template = load()
        self._stacks = count()

    @contextmanager
    def table(self) -> Iterator[str]:
        """Make a table, keyed and indexed as deploy/template.yaml has it; give its name."""
        definition = self._template.table_definition(f"stack-{next(self._stacks)}")
        name: str = definition["TableName"]
        self.dynamodb.create_table(**definition)
        yield name
        self.dynamodb.delete_table(TableName=name)

    def put(self, table: str, item: Item) -> None:
        """Put an item into a table."""
        self.dynamodb.put_item(TableName=table, Item=typed(item))

    def items(self, table: str) -> dict[str, Item]:
        """All that is in a table, tombstones too."""
        return {item["Id"]["S"]: plain(item) for item in self.dynamodb.scan(TableName=table)["Items"]}

    def make_function(self, name: str, variables: dict[str, str]) -> None:
        """Make a function of Lambda with these variables in its environment."""
        with (
            closing(boto3.client("iam", **location_of(self.environ, "iam"))) as iam,
            closing(boto3.client("lambda", **location_of(self.environ, "lambda"))) as functions,
        ):
            role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
            functions.create_function(
                FunctionName=name,
                Runtime="python3.14",
                Handler="processor.handler.handle",
                Role=role,
                Code={"ZipFile": b""},
                Environment={"Variables": variables},
            )

    def close(self) -> None:
        self.dynamodb.close()
        self.s3.close()
