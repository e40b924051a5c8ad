"""
Reads deploy/template.yaml, so that a local run has the names and settings of the stack and cannot drift from it.

Knows as much of CloudFormation as that template uses: parameters and their defaults, conditions, mappings, the short
forms of Ref, Fn::Sub, Fn::GetAtt, Fn::If, Fn::Equals, Fn::And, Fn::Not, Fn::Split and Fn::FindInMap, and AWS::NoValue.
What it cannot resolve is a `TemplateError` that names it, and so is a setting that a local run would have to ignore: a
run on guessed settings proves nothing.
"""

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast
except ImportError:  # PyYAML was built where there was no libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

TEMPLATE = Path(__file__).parent.parent / "deploy" / "template.yaml"

_TABLE = "EventDataTable"
_FUNCTION = "DDBEventProcessor"
_MAPPING = "EventSourceMapping"

_NO_VALUE = object()

Outside = Callable[[str, str | None], Any]
"""What only exists once there is a stack: (name, attribute) -> value; no attribute for a Ref."""


class TemplateError(ValueError):
    """The template holds something that cannot be resolved here; the message names it."""


@dataclass(frozen=True)
class MappingSettings:
    """
    How Lambda reads the stream; the meanings are those of AWS::Lambda::EventSourceMapping.

    Attributes:
        batch_size: most Kinesis records in one call of the function.
        window_seconds: how long to wait for a fuller batch.
        parallelization_factor: batches of one shard in work at the same time, 1 to 10.
        bisect: whether a batch whose call failed as a whole is tried again in halves.
        retry_attempts: tries of a batch after the first; -1 is without end.
        record_age_seconds: age at which a record is given up; -1 is never.
        report_batch_item_failures: whether the function's answer names the records that failed.
        starting_position: TRIM_HORIZON or LATEST.
    """

    batch_size: int
    window_seconds: int
    parallelization_factor: int
    bisect: bool
    retry_attempts: int
    record_age_seconds: int
    report_batch_item_failures: bool
    starting_position: str


@dataclass(frozen=True)
class FunctionSettings:
    """What Lambda gives the function: name, handler (module.function), time limit, memory in MB, environment."""

    name: str
    handler: str
    timeout_seconds: int
    memory_megabytes: int
    environment: Mapping[str, str]


class Template:
    """A template with values for its parameters. `document` is the template as it stands in the file."""

    def __init__(self, document: Mapping[str, Any], parameters: Mapping[str, str | int]) -> None:
        self.document = document
        declared = document.get("Parameters", {})
        if unknown := sorted(parameters.keys() - declared.keys()):
            raise TemplateError(f"{unknown[0]} is no parameter of the template; there are: {', '.join(declared)}")
        self._parameters: dict[str, Any] = {}
        for name, spec in declared.items():
            value = parameters.get(name, spec.get("Default"))
            try:
                self._parameters[name] = int(value) if spec["Type"] == "Number" and value is not None else value
            except ValueError:
                raise TemplateError(f"the parameter {name} is a number, not {value!r}") from None

    def table_definition(self, stack_name: str) -> dict[str, Any]:
        """Return the table as arguments for DynamoDB's CreateTable; see `ttl_attribute` for what that cannot say."""
        definition = self._properties(
            _TABLE,
            stack_name,
            used={
                "TableName",
                "AttributeDefinitions",
                "BillingMode",
                "GlobalSecondaryIndexes",
                "KeySchema",
                "OnDemandThroughput",
                "SSESpecification",
            },
            unused={"DeletionProtectionEnabled", "PointInTimeRecoverySpecification", "TimeToLiveSpecification"},
        )
        # The one name in which CloudFormation and the API differ.
        definition["SSESpecification"] = {"Enabled": definition["SSESpecification"]["SSEEnabled"]}
        return definition

    @property
    def ttl_attribute(self) -> str:
        """The attribute that tells DynamoDB when an item expires, in seconds since 1970."""
        return str(self._resource(_TABLE)["Properties"]["TimeToLiveSpecification"]["AttributeName"])

    def mapping(self) -> MappingSettings:
        """Return how Lambda is to read the stream."""
        settings = self._properties(
            _MAPPING,
            "",
            used={
                "BatchSize",
                "BisectBatchOnFunctionError",
                "FunctionResponseTypes",
                "MaximumBatchingWindowInSeconds",
                "MaximumRecordAgeInSeconds",
                "MaximumRetryAttempts",
                "ParallelizationFactor",
                "StartingPosition",
            },
            unused={"DestinationConfig", "Enabled", "EventSourceArn", "FunctionName", "MetricsConfig"},
        )
        return MappingSettings(
            batch_size=settings["BatchSize"],
            window_seconds=settings["MaximumBatchingWindowInSeconds"],
            parallelization_factor=settings["ParallelizationFactor"],
            bisect=settings["BisectBatchOnFunctionError"],
            retry_attempts=settings["MaximumRetryAttempts"],
            record_age_seconds=settings["MaximumRecordAgeInSeconds"],
            report_batch_item_failures="ReportBatchItemFailures" in settings["FunctionResponseTypes"],
            starting_position=settings["StartingPosition"],
        )

    def function(self, stack_name: str) -> FunctionSettings:
        """Return what the processor's function runs with in a stack of this name."""
        settings = self._properties(
            _FUNCTION,
            stack_name,
            used={"FunctionName", "Handler", "Timeout", "MemorySize", "Environment"},
            unused={"Architectures", "Code", "Description", "LoggingConfig", "Role", "Runtime"},
        )
        return FunctionSettings(
            name=settings["FunctionName"],
            handler=settings["Handler"],
            timeout_seconds=settings["Timeout"],
            memory_megabytes=settings["MemorySize"],
            environment={name: _text(value) for name, value in settings["Environment"]["Variables"].items()},
        )

    def resources(self) -> dict[str, Mapping[str, Any]]:
        """Return the resources whose condition, if any, is true, as they stand in the file."""
        return {name: resource for name, resource in self.document["Resources"].items() if self._is_made(resource)}

    def resolve(self, node: Any, outside: Outside) -> Any:
        """Return `node` with every intrinsic function replaced; `outside` is asked for what no parameter says."""
        if isinstance(node, Mapping):
            if len(node) == 1:
                name, argument = next(iter(node.items()))
                if name == "Ref" or name.startswith("Fn::") or (name == "Condition" and isinstance(argument, str)):
                    return self._intrinsic(name, argument, outside)
            pairs = ((name, self.resolve(value, outside)) for name, value in node.items())
            return {name: value for name, value in pairs if value is not _NO_VALUE}
        if isinstance(node, list):
            values = (self.resolve(value, outside) for value in node)
            return [value for value in values if value is not _NO_VALUE]
        return node

    def _intrinsic(self, name: str, argument: Any, outside: Outside) -> Any:
        match name, argument:
            case "Ref", str():
                return self._reference(argument, None, outside)
            case "Fn::GetAtt", [str() as resource, str() as attribute]:
                return self._reference(resource, attribute, outside)
            case "Fn::Sub", str():
                return self._substitute(argument, {}, outside)
            case "Fn::Sub", [str() as text, Mapping() as variables]:
                return self._substitute(text, variables, outside)
            case "Fn::If", [str() as condition, then, otherwise]:
                return self.resolve(then if self._is_true(condition) else otherwise, outside)
            case "Fn::Equals", [left, right]:
                return _text(self.resolve(left, outside)) == _text(self.resolve(right, outside))
            case "Condition", str():
                return self._is_true(argument)
            case "Fn::Not", [condition]:
                return not self.resolve(condition, outside)
            case "Fn::And", [_, _, *_] as conditions:
                return all(self.resolve(condition, outside) for condition in conditions)
            case "Fn::Split", [str() as separator, text]:
                return _text(self.resolve(text, outside)).split(separator)
            case "Fn::FindInMap", [str() as table, row, str() as column]:
                return self._find(table, _text(self.resolve(row, outside)), column)
        raise TemplateError(f"{name} of {argument!r} is more than can be resolved here")

    def _substitute(self, text: str, variables: Mapping[str, Any], outside: Outside) -> str:
        def value(found: re.Match[str]) -> str:
            name, attribute = found[1], found[2] or None
            if name in variables and attribute is None:
                return _text(self.resolve(variables[name], outside))
            return _text(self._reference(name, attribute, outside))

        return re.sub(r"\$\{([^}.]*)\.?([^}]*)\}", value, text)

    def _find(self, table: str, row: str, column: str) -> Any:
        try:
            return self.document["Mappings"][table][row][column]
        except KeyError:
            raise TemplateError(f"the mapping {table} has no {row}, {column}") from None

    def _reference(self, name: str, attribute: str | None, outside: Outside) -> Any:
        if name == "AWS::NoValue":
            return _NO_VALUE
        if name in self._parameters and attribute is None:
            if self._parameters[name] is None:
                raise TemplateError(f"the parameter {name} has no default: give it a value")
            return self._parameters[name]
        if not name.startswith("AWS::"):
            self._resource(name)
        return outside(name, attribute)

    def _resource(self, name: str) -> Mapping[str, Any]:
        resource = self.document["Resources"].get(name)
        if resource is None:
            raise TemplateError(f"{name} is neither a parameter nor a resource of the template")
        if not self._is_made(resource):
            raise TemplateError(f"{name} is not in the stack, since its condition {resource['Condition']} is false")
        found: Mapping[str, Any] = resource
        return found

    def _is_made(self, resource: Mapping[str, Any]) -> bool:
        return "Condition" not in resource or self._is_true(resource["Condition"])

    def _is_true(self, condition: str) -> bool:
        try:
            rule = self.document["Conditions"][condition]
        except KeyError:
            raise TemplateError(f"{condition} is no condition of the template") from None
        return bool(self.resolve(rule, self._names("")))

    def _properties(
        self, name: str, stack_name: str, *, used: AbstractSet[str], unused: AbstractSet[str]
    ) -> dict[str, Any]:
        properties = self._resource(name)["Properties"]
        if unknown := sorted(properties.keys() - used - unused):
            raise TemplateError(f"{name}.{unknown[0]} has no counterpart in a local run")
        wanted = {key: value for key, value in properties.items() if key in used}
        settings: dict[str, Any] = self.resolve(wanted, self._names(stack_name))
        if missing := sorted(used - settings.keys()):
            raise TemplateError(f"{name}.{missing[0]} is not set; a local run does not guess it")
        return settings

    def _names(self, stack_name: str) -> Outside:
        """Return what a local run knows of the stack: names, and no ARN of anything."""

        def name_of(name: str, attribute: str | None) -> Any:
            if stack_name and attribute is None:
                resource = self.document["Resources"].get(name, {})
                match resource.get("Type", name):
                    case "AWS::StackName":
                        return stack_name
                    case "AWS::DynamoDB::Table":
                        return self.resolve(resource["Properties"]["TableName"], name_of)
                    case "AWS::S3::Bucket":
                        # As CloudFormation names a bucket, without the random end.
                        return f"{stack_name}-{name}".lower()
            raise TemplateError(f"{name}{f'.{attribute}' if attribute else ''} is only known in a real stack")

        return name_of


class _Loader(SafeLoader):
    """YAML with CloudFormation's short tags, read as their long form."""

    def short_form(self, name: str, node: yaml.ScalarNode | yaml.SequenceNode | yaml.MappingNode) -> dict[str, Any]:
        argument: Any
        match node:
            case yaml.SequenceNode():
                argument = self.construct_sequence(node, deep=True)
            case yaml.MappingNode():
                argument = self.construct_mapping(node, deep=True)
            case yaml.ScalarNode():
                text = str(self.construct_scalar(node))
                argument = text.split(".", 1) if name == "GetAtt" else text
        return {name if name in {"Ref", "Condition"} else f"Fn::{name}": argument}


_Loader.add_multi_constructor("!", _Loader.short_form)


def load(path: Path = TEMPLATE, parameters: Mapping[str, str | int] | None = None) -> Template:
    """Return the template at `path`; raise OSError or `TemplateError` for one that cannot be read."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  # a SafeLoader, with more tags
    except yaml.YAMLError as error:
        raise TemplateError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or "Resources" not in document:
        raise TemplateError(f"{path} is no CloudFormation template: it has no Resources")
    return Template(document, parameters or {})


def _text(value: Any) -> str:
    """Return a scalar as CloudFormation writes it into a string."""
    return str(value).lower() if isinstance(value, bool) else str(value)
