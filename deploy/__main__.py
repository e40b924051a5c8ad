"""
Deploys the stack and deletes it; `make deploy` and `make undeploy` call this.

    python -m deploy up STACK [Parameter=Value ...]     make the stack, or change it; parameters keep their values
    python -m deploy down STACK                         delete it, and the code that was uploaded for it
    python -m deploy env STACK                          the daemon's credentials, region and stream, as lines of .env
    python -m deploy quickstart FILE                    write a template with the code inside, for the console

Credentials and region are botocore's own: AWS_PROFILE, AWS_REGION, ...

Exit codes: 0; 1 something failed, said in one line; 2 the command is not usable.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.bucket import BucketError, CodeBucket
from deploy.package import package
from deploy.quickstart import QuickstartError, quickstart
from deploy.stack import Stack, StackError, check_names
from local.template import TEMPLATE, load

WAYS_OUT = {
    "NoCredentialsError": "there are no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NoRegionError": "there is no region: set AWS_REGION",
    "EndpointConnectionError": "AWS cannot be reached: look at the spelling of AWS_REGION, and at the network",
    "ExpiredToken": "the credentials are out of date",
    "InvalidClientTokenId": "the credentials are not valid",
    "SignatureDoesNotMatch": "the secret key is wrong, or this machine's clock is",
}

# Botocore would send what a shell has of other credentials along with the client's key.
TEMPORARY = {"AWS_SESSION_TOKEN": "", "AWS_CREDENTIAL_EXPIRATION": ""}


def up(name: str, parameters: Mapping[str, str], session: Any, template: str) -> None:
    """Upload code and template, make or change the stack, and say what to do next."""
    declared = load().document["Parameters"]
    check_names(parameters, declared)
    stack = Stack(name, session.client("cloudformation"), say=_say)
    bucket = _bucket(name, session)
    bucket.make()
    code, text = package(), template.encode()
    # A new key is what makes CloudFormation take new code.
    code_key = bucket.put(f"{sha256(code).hexdigest()[:16]}.zip", code)
    template_key = bucket.put(f"{sha256(text).hexdigest()[:16]}.yaml", text)
    own = {"ArtifactBucket": bucket.name, "ArtifactKey": code_key}
    _say(f"deploying {name} in {session.region_name}")
    stack.deploy(bucket.url(template_key), declared, {**parameters, **own})
    bucket.keep_only({code_key, template_key})
    for line in next_steps(name, stack.outputs()):
        _say(line)
    if email := parameters.get("AlarmEmail"):
        _say(f"  {email} gets a message first, and alarms only after a click on its link")


def down(name: str, session: Any) -> None:
    """Delete the stack and what was uploaded for it."""
    stack = Stack(name, session.client("cloudformation"), say=_say)
    stack.delete()
    bucket = _bucket(name, session)
    gone = bucket.remove()
    _say(f"{name} is gone" + ("" if gone else f"; {bucket.name} stays for other stacks"))


def variables(name: str, session: Any) -> None:
    """Say what the secret of the stack's client holds, for a shell or a file of environment variables."""
    outputs = Stack(name, session.client("cloudformation")).outputs()
    if not outputs:
        raise StackError(f"there is no stack {name} in {session.region_name}")
    if "CredentialsSecretArn" not in outputs:
        raise StackError(f"{name} has no client of its own (CreateClient is false): the daemon runs under a role")
    secret = session.client("secretsmanager").get_secret_value(SecretId=outputs["CredentialsSecretArn"])
    for key, value in {**TEMPORARY, **json.loads(secret["SecretString"])}.items():
        # Not everything that reads such lines knows quotes.
        _say(f"{key}={value and shlex.quote(value)}")


def next_steps(name: str, outputs: Mapping[str, str]) -> list[str]:
    """Return the outputs of the stack, and the commands that come next."""
    lines = ["", *(f"  {key:<20} {value}" for key, value in outputs.items()), "", "Next:"]
    if "ProducerService" in outputs:
        lines += [f"  look into the log group /millrace/{name}", "    what the daemon says; it runs already"]
    else:
        if "CredentialsCommand" in outputs:
            lines += [f'  set -a; eval "$(.venv/bin/python -m deploy env {name})"; set +a']
            lines += ["    in a second terminal: these credentials can do nothing but fill the stream"]
        else:
            lines += [
                f"  export AWS_REGION={outputs.get('Region')} MILLRACE_STREAM={outputs.get('StreamName')}",
                f"    with credentials of a role that has {outputs.get('ClientPolicyArn')}",
            ]
        lines += [
            "  export MILLRACE_BEARER_TOKEN=... MILLRACE_RULES=...",
            "  .venv/bin/python -m service check",
            "  .venv/bin/python -m service",
        ]
    return [
        *lines,
        f"  .venv/bin/python -m processor --stack {name} latest",
        "    with the credentials of this terminal",
        f"  make undeploy STACK={name}",
        "    deletes all of it again",
    ]


def main(arguments: Sequence[str], *, session: Any = None, template: str | None = None) -> int:
    """Run one command and return the exit code; a session or template of your own replace the usual ones."""
    try:
        match list(arguments):
            case ["up", name, *pairs] if all("=" in pair for pair in pairs):
                parameters = dict(pair.split("=", 1) for pair in pairs)
                text = TEMPLATE.read_text(encoding="utf-8") if template is None else template
                up(name, parameters, session or _session(), text)
            case ["down", name]:
                down(name, session or _session())
            case ["env", name]:
                variables(name, session or _session())
            case ["quickstart", file]:
                Path(file).write_text(quickstart(), encoding="utf-8")
            case _:
                print((__doc__ or "").strip(), file=sys.stderr)
                return 2
    except (StackError, BucketError, QuickstartError, OSError) as error:
        return _failed(str(error))
    except ClientError as error:
        code = error.response["Error"]["Code"]
        return _failed(f"{WAYS_OUT.get(code, 'AWS refuses')} ({' '.join(str(error).split())})")
    except BotoCoreError as error:
        return _failed(WAYS_OUT.get(type(error).__name__, " ".join(str(error).split())))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _failed(text: str) -> int:
    print(f"deploy: {text}", file=sys.stderr)
    return 1


def _session() -> Any:
    # boto3 itself reads the region from AWS_DEFAULT_REGION only; every other SDK, and this project, knows AWS_REGION.
    return boto3.Session(region_name=os.environ.get("AWS_REGION") or None)


def _bucket(name: str, session: Any) -> CodeBucket:
    account = session.client("sts").get_caller_identity()["Account"]
    # Version 4 makes it name the bucket's region in its address: a new bucket is not known elsewhere yet.
    return CodeBucket(session.client("s3", config=Config(signature_version="s3v4")), account, name)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        # CloudFormation goes on by itself.
        sys.exit(130)
