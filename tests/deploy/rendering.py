"""The template as CloudFormation would see it with given parameters: what the tests of the stack look at."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from local.template import Template, load

Document = Mapping[str, Any]

DOCUMENT = load().document
CODE: dict[str, str | int] = {"ArtifactBucket": "code", "ArtifactKey": "1.zip"}
# Everything that can be switched on, and a value for what has none by default.
FULL: dict[str, str | int] = {
    **CODE,
    "IdPointer": "/id",
    "TimePointer": "/time",
    "ProducerImage": "registry/millrace:1",
    "ProducerTokenSecretArn": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:token",
    "ProducerRules": "coffee",
    "ProducerVpc": "vpc-0123456789abcdef0",
    "ProducerSubnets": "subnet-0123456789abcdef0",
    "AlarmEmail": "me@example.org",
    "PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/edge",
}
REFERENCE = re.compile(r"\$\{(\w+)")


def symbol(name: str, attribute: str | None) -> str:
    """Stand for what only a real stack knows, in the notation of Fn::Sub."""
    return f"${{{name}.{attribute}}}" if attribute else f"${{{name}}}"


def render(document: Mapping[str, Any] = DOCUMENT, /, **parameters: str | int) -> dict[str, Any]:
    """Return the stack's resources and outputs with these parameters; TemplateError for a dangling reference."""
    template = Template(document, {**CODE, **parameters})
    resources = {
        name: {"Type": resource["Type"], **template.resolve(resource.get("Properties", {}), symbol)}
        for name, resource in template.resources().items()
    }
    outputs = {
        name: template.resolve(output["Value"], symbol)
        for name, output in document["Outputs"].items()
        if "Condition" not in output or template.resolve({"Condition": output["Condition"]}, symbol)
    }
    return {**resources, "Outputs": outputs}


def combinations(document: Mapping[str, Any] = DOCUMENT) -> Iterator[dict[str, str | int]]:
    """Give every combination of the parameters that a condition looks at: each of its values, or empty and not."""
    switches: dict[str, list[str | int]] = {}
    for name, spec in document["Parameters"].items():
        if name in references(document["Conditions"]):
            switches[name] = list(spec["AllowedValues"]) if "AllowedValues" in spec else ["", FULL[name]]
    for values in product(*switches.values()):
        yield {**FULL, **dict(zip(switches, values, strict=True))}


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Return every scalar of a tree by its dotted path."""
    if isinstance(node, Mapping):
        pairs = [(str(name), value) for name, value in node.items()]
    elif isinstance(node, list):
        pairs = [(str(index), value) for index, value in enumerate(node)]
    else:
        return {path: node}
    return {place: leaf for name, value in pairs for place, leaf in leaves(value, f"{path}.{name}".lstrip(".")).items()}


def references(node: Any) -> set[str]:
    """Return the names that a piece of the template refers to."""
    if isinstance(node, Mapping):
        named = {str(node["Ref"])} if "Ref" in node else set()
        named |= {str(node["Fn::GetAtt"][0])} if "Fn::GetAtt" in node else set()
        return named.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return {name for value in node for name in references(value)}
    return set(REFERENCE.findall(node)) if isinstance(node, str) else set()


def needs(name: str, document: Mapping[str, Any] = DOCUMENT) -> set[str]:
    """Return the resources that must exist before this one, and are therefore deleted after it."""
    resources = document["Resources"]
    resource = resources[name]
    explicit = {resource["DependsOn"]} if "DependsOn" in resource else set()
    direct: set[str] = (references(resource.get("Properties", {})) | explicit) & resources.keys()
    return direct.union(*(needs(other, document) for other in direct))


def allowed(stack: Mapping[str, Any], policy: str) -> set[tuple[str, str]]:
    """Return (action, resource) for all that a managed policy of a rendered stack allows."""
    pairs: set[tuple[str, str]] = set()
    for statement in stack[policy]["PolicyDocument"]["Statement"]:
        assert statement.keys() == {"Sid", "Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        actions, resources = (
            value if isinstance(value, list) else [value] for value in (statement["Action"], statement["Resource"])
        )
        pairs |= set(product(actions, resources))
    return pairs
