"""
The template as one file with the code inside, for people without a checkout: pasted into the console, in any region.

CloudFormation takes a template of at most 51,200 bytes that way, and a function whose code is in the template is one
module. So the template is written as YAML of one line for each resource, what only this project needs is left out, and
the module holds the processor as a packed zip, without the comments, docstrings and annotations of its functions. What
is left of each module is the same program, which a test shows.

The daemon as a service is left out: who has an image of it has a checkout as well.
"""

import ast
import json
import lzma
import re
from base64 import b85encode
from collections.abc import Mapping
from io import BytesIO
from typing import Any
from zipfile import ZipFile, ZipInfo

from deploy.package import CODE
from local.template import load

# CloudFormation's limit for a template in a request.
MOST_BYTES = 51_200
FUNCTION = "DDBEventProcessor"
HANDLER = "index.handle"
MODULE = """\
# The processor of Millrace, as a zip: to look at it, run the next four lines and open the file.
import base64, lzma, pathlib, sys, tempfile
packed = "{code}"
archive = pathlib.Path(tempfile.gettempdir(), "processor.zip")
archive.write_bytes(lzma.decompress(base64.b85decode(packed)))
sys.path.insert(0, str(archive))
from processor.handler import handle
"""
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*([.-][A-Za-z0-9_]+)*")
# What YAML 1.1 takes for a truth value or nothing.
NOT_PLAIN = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
LEFT_OUT = re.compile(r"Producer\w*|Artifact\w+|HasProducer|IsMonitoredProducer")


class QuickstartError(Exception):
    """The template does not fit; the text is one line."""


def quickstart() -> str:
    """Return the template; QuickstartError if it is too long for the console."""
    document = json.loads(json.dumps(load().document))
    properties = document["Resources"][FUNCTION]["Properties"]
    properties["Code"] = {"ZipFile": MODULE.format(code=b85encode(code()).decode())}
    cleanup = document["Resources"]["Cleanup"]["Properties"]["Code"]
    cleanup["ZipFile"] = bare(cleanup["ZipFile"])
    properties["Handler"] = HANDLER
    groups = document["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    for group in groups:
        group["Parameters"] = [name for name in group["Parameters"] if not LEFT_OUT.fullmatch(name)]
    document["Metadata"] = {
        "AWS::CloudFormation::Interface": {"ParameterGroups": [group for group in groups if group["Parameters"]]}
    }
    body = document["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    text = body[0].replace("${ProducerAlarm}", "").replace("${ProducerWidget}", "")
    document["Resources"]["Dashboard"]["Properties"]["DashboardBody"] = {"Fn::Sub": _tight(text)}
    for section in ("Parameters", "Mappings", "Rules", "Conditions", "Resources", "Outputs"):
        document[section] = {name: value for name, value in document[section].items() if not LEFT_OUT.fullmatch(name)}
    written = as_yaml({name: content for name, content in document.items() if content})
    size = len(written.encode())
    if size >= MOST_BYTES:
        raise QuickstartError(f"with the code inside it has {size:,} bytes, and CloudFormation takes {MOST_BYTES:,}")
    return written


def code() -> bytes:
    """Return a packed zip with what the handler is made of, each module bare."""
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        for name, source in sorted(modules().items()):
            archive.writestr(ZipInfo(f"{CODE.name}/{name}.py"), bare(source))
    # Packed as a whole, because the modules are like each other: a fifth less than each by itself.
    return lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def modules() -> Mapping[str, str]:
    """Return the sources of the handler, of what it imports of the processor, and so on, by their names."""
    found: dict[str, str] = {}
    wanted = ["__init__", "handler"]
    while wanted:
        name = wanted.pop()
        if name in found or not (CODE / f"{name}.py").is_file():
            continue
        found[name] = (CODE / f"{name}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = node.module.split(".")
                if module[0] == CODE.name:
                    wanted += module[1:] or [alias.name for alias in node.names]
    return found


def bare(source: str) -> str:
    """Return a program without its comments, its docstrings and the annotations of its functions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        # Those of classes stay: a NamedTuple is made of them.
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(tree)


def as_yaml(document: Mapping[str, Any]) -> str:
    """Return a template as YAML: one line for each resource, parameter, and so on."""
    lines = []
    for name, content in document.items():
        if isinstance(content, dict):
            lines += [f"{name}:", *(f"  {_text(key)}: {_yaml(value)}" for key, value in content.items())]
        else:
            lines.append(f"{name}: {_yaml(content)}")
    return "\n".join(lines) + "\n"


def _yaml(node: Any) -> str:
    """Return a piece of the template in YAML's flow style, with CloudFormation's short forms: shorter than JSON."""
    match node:
        case {"Ref": str() as name, **rest} if not rest:
            return f"!Ref {_text(name)}"
        case {"Fn::GetAtt": [str() as name, str() as attribute], **rest} if not rest:
            return f"!GetAtt {name}.{attribute}"
        case {"Condition": str() as name, **rest} if not rest:
            return f"!Condition {name}"
        case dict() if len(node) == 1 and (name := next(iter(node))).startswith("Fn::"):
            return f"!{name.removeprefix('Fn::')} {_yaml(node[name])}"
        case dict():
            return "{" + ",".join(f"{_text(key)}: {_yaml(value)}" for key, value in node.items()) + "}"
        case list():
            return "[" + ",".join(map(_yaml, node)) + "]"
        case str():
            return _text(node)
    return json.dumps(node)


def _text(text: str) -> str:
    """Return a text as it is where YAML can take it for nothing else, and in quotes otherwise."""
    plain = PLAIN.fullmatch(text) and text.lower() not in NOT_PLAIN
    return text if plain else json.dumps(text, ensure_ascii=False)


def _tight(dashboard: str) -> str:
    """Return the body of the dashboard without the blanks that only make it readable; placeholders are in texts."""
    return json.dumps(json.loads(dashboard), separators=(",", ":"), ensure_ascii=False)
