from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from deploy.bucket import BucketError, CodeBucket
from tests.deploy.emulator import LocalSession

ACCOUNT = "123456789012"


class Refusing:
    """S3 as it answers to a bucket that cannot be looked at."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.meta = SimpleNamespace(region_name="eu-west-1")

    def head_bucket(self, **_: str) -> None:
        raise ClientError({"Error": {"Code": self.code, "Message": "No"}}, "HeadBucket")


def test_bucket_is_made_once(session: LocalSession) -> None:
    """It is made in the region of the stack, named after account and region, and found there the next time."""
    s3 = session.client("s3")
    bucket = CodeBucket(s3, ACCOUNT, "mill")
    bucket.make()
    bucket.make()
    assert bucket.name == "millrace-code-123456789012-eu-west-1"
    assert s3.get_bucket_location(Bucket=bucket.name)["LocationConstraint"] == "eu-west-1"


def test_home_region_is_not_named(session: LocalSession) -> None:
    """S3 refuses the name of the region that its first buckets were in."""
    session.region_name = "us-east-1"
    CodeBucket(session.client("s3"), ACCOUNT, "mill").make()
    assert [bucket["Name"] for bucket in session.client("s3").list_buckets()["Buckets"]] == [
        "millrace-code-123456789012-us-east-1"
    ]


def test_objects_of_another_stack_stay(session: LocalSession) -> None:
    """What a stack puts there goes with it; the bucket goes with the last one."""
    s3 = session.client("s3")
    one, other = CodeBucket(s3, ACCOUNT, "mill"), CodeBucket(s3, ACCOUNT, "mill-2")
    one.make()
    keys = [one.put("a", b"a"), one.put("b", b"b"), other.put("a", b"c")]
    assert keys == ["mill/a", "mill/b", "mill-2/a"]
    one.keep_only({"mill/b"})
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=one.name)["Contents"]] == ["mill-2/a", "mill/b"]
    assert one.remove() is False
    assert s3.get_object(Bucket=one.name, Key="mill-2/a")["Body"].read() == b"c"
    assert other.remove() is True
    assert s3.list_buckets()["Buckets"] == []


def test_bucket_that_is_not_there_is_gone(session: LocalSession) -> None:
    """To remove what never was is no error."""
    assert CodeBucket(session.client("s3"), ACCOUNT, "mill").remove() is True


def test_bucket_of_another_account_is_told() -> None:
    """Bucket names are the world's: one that is taken is said in a line, and nothing is put there."""
    with pytest.raises(BucketError, match="millrace-code-123456789012-eu-west-1 is not yours"):
        CodeBucket(Refusing("403"), ACCOUNT, "mill").make()


def test_trouble_of_s3_is_not_taken_for_a_missing_bucket() -> None:
    """Only a plain no means that it has to be made."""
    with pytest.raises(ClientError):
        CodeBucket(Refusing("500"), ACCOUNT, "mill").make()
