"""
The bucket that a deployment puts its code and template into: made when it is needed, gone with the last stack.

One bucket for each account and region, millrace-code-ACCOUNT-REGION, because CloudFormation takes code only out of a
bucket in the stack's own region. The objects of a stack lie under its name.
"""

from collections.abc import Collection, Iterator
from typing import Any

from botocore.exceptions import ClientError

# S3's name for the answers to HeadBucket, which have no body to say more.
MISSING = "404"
FORBIDDEN = "403"
# It is the one region that must not be named.
HOME_REGION = "us-east-1"


class BucketError(Exception):
    """The bucket cannot be used; the text is one line."""


class CodeBucket:
    """
    The objects of one stack in the bucket.

    Args:
        s3: boto3's client, in the region of the stack.
        account: number of the account, 12 digits.
        stack: name of the stack.
    """

    def __init__(self, s3: Any, account: str, stack: str) -> None:
        self._s3 = s3
        self._account = account
        self._prefix = f"{stack}/"
        self.name = f"millrace-code-{account}-{s3.meta.region_name}"

    def make(self) -> None:
        """Make the bucket unless there is one; BucketError if the name is taken by another account."""
        if self._exists():
            return
        region = self._s3.meta.region_name
        where = {} if region == HOME_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self._s3.create_bucket(Bucket=self.name, **where)
        self._s3.get_waiter("bucket_exists").wait(Bucket=self.name)

    def put(self, name: str, content: bytes) -> str:
        """Store an object of the stack; return its key."""
        key = self._prefix + name
        self._s3.put_object(Bucket=self.name, Key=key, Body=content, ExpectedBucketOwner=self._account)
        return key

    def url(self, key: str) -> str:
        """Return the address of an object, as CloudFormation wants it, in whatever partition of AWS."""
        signed: str = self._s3.generate_presigned_url("get_object", Params={"Bucket": self.name, "Key": key})
        return signed.partition("?")[0]

    def keep_only(self, keys: Collection[str]) -> None:
        """Delete all objects of the stack but these."""
        if not self._exists():
            return
        for page in self._pages(self._prefix):
            old = [{"Key": entry["Key"]} for entry in page if entry["Key"] not in keys]
            if old:
                self._s3.delete_objects(Bucket=self.name, Delete={"Objects": old, "Quiet": True})

    def remove(self) -> bool:
        """Delete the objects of the stack, and the bucket if it has no others; return whether it is gone."""
        self.keep_only(())
        if not self._exists():
            return True
        if any(page for page in self._pages("")):
            return False
        self._s3.delete_bucket(Bucket=self.name, ExpectedBucketOwner=self._account)
        return True

    def _pages(self, prefix: str) -> Iterator[list[Any]]:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
            yield page.get("Contents", [])

    def _exists(self) -> bool:
        try:
            self._s3.head_bucket(Bucket=self.name, ExpectedBucketOwner=self._account)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == MISSING:
                return False
            if code == FORBIDDEN:
                raise BucketError(f"the bucket {self.name} is not yours, or you may not use it") from error
            raise
        return True
