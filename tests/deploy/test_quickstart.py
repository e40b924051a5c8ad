import base64
import json
import lzma
import re
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from deploy.package import CODE
from deploy.quickstart import FUNCTION, LEFT_OUT, MOST_BYTES, as_yaml, bare, modules, quickstart
from local.template import Template, load
from tests.deploy.emulator import as_lambda, event_of, moto
from tests.deploy.rendering import CODE as ARTIFACT
from tests.deploy.rendering import DOCUMENT, combinations, symbol

Document = dict[str, Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart as a file."""
    path = tmp_path_factory.mktemp("quickstart") / "quickstart.yaml"
    path.write_text(quickstart(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quick(path: Path) -> Document:
    """The quickstart as a template."""
    return dict(load(path).document)


def inline(quick: Document) -> str:
    """Return the code inside."""
    return str(quick["Resources"][FUNCTION]["Properties"]["Code"]["ZipFile"])


def test_it_fits_into_the_console(path: Path) -> None:
    """CloudFormation takes 51,200 bytes without a bucket, and 4 MB of code inside."""
    assert path.stat().st_size < MOST_BYTES == 51_200


def test_it_needs_nothing_that_is_elsewhere(quick: Document) -> None:
    """Every parameter has a default, so that it can be pasted and created at once, in any region."""
    assert all("Default" in spec for spec in quick["Parameters"].values())
    assert not ARTIFACT.keys() & quick["Parameters"].keys()


def test_it_is_the_template_but_for_what_it_leaves_out(quick: Document) -> None:
    """All of it is the template's, but for the code, the service and the form of the dashboard."""
    for section in ("Parameters", "Rules", "Conditions", "Resources", "Outputs"):
        expected = {name: value for name, value in DOCUMENT[section].items() if not LEFT_OUT.fullmatch(name)}
        found = dict(quick[section])
        if section == "Resources":
            for name in (FUNCTION, "Dashboard", "Cleanup"):
                expected.pop(name)
                found.pop(name)
        assert found == expected
    before, after = (dict(document["Resources"][FUNCTION]["Properties"]) for document in (DOCUMENT, quick))
    assert {name for name in before if before[name] != after[name]} == {"Code", "Handler"}


def test_dashboard_shows_the_same(quick: Document) -> None:
    """The dashboard has all widgets but the service's."""
    body = json.loads(quick["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])
    original = DOCUMENT["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"][0]
    assert len(body["widgets"]) == original.count('"type":')


@pytest.mark.parametrize(
    "text", ["true", "No", "null", "4", "1.5", "2010-09-09", "a: b", "", " a", "a,b", "x #y", "{a}", "水", "-a", "a\n"]
)
def test_text_stays_a_text(text: str, tmp_path: Path) -> None:
    """What YAML would take for something else is quoted."""
    path = tmp_path / "template.yaml"
    path.write_text(as_yaml({"Resources": {"A": {text or "x": [text]}}}), encoding="utf-8")
    assert load(path).document == {"Resources": {"A": {text or "x": [text]}}}


def test_code_is_that_of_the_processor(quick: Document) -> None:
    """Each module in it is the processor's as it is now, without comments, docstrings and annotations of functions."""
    (packed,) = re.findall(r'^packed = "(.+)"$', inline(quick), re.MULTILINE)
    with ZipFile(BytesIO(lzma.decompress(base64.b85decode(packed)))) as archive:
        inside = {name: archive.read(name).decode() for name in archive.namelist()}
    assert inside == {
        f"processor/{name}.py": bare((CODE / f"{name}.py").read_text(encoding="utf-8")) for name in modules()
    }


def test_bare_program_is_the_same_program() -> None:
    """What is taken out is nothing that runs; what a class is made of stays."""
    source = (
        '"""Module."""\n# a\nclass A(NamedTuple):\n    """Class."""\n    a: int\n\n'
        '    def f(self, x: int = 1) -> int:\n        """Method."""\n        return x\n\n'
        'class B:\n    """Only this."""\n'
    )
    assert bare(source) == (
        "class A(NamedTuple):\n    a: int\n\n    def f(self, x=1):\n        return x\n\nclass B:\n    pass"
    )


def test_code_carries_a_post_into_the_table(quick: Document, tmp_path: Path) -> None:
    """Started as Lambda does it, as module index in an empty folder, the code inside stores a post."""
    post = {"data": {"id": "1234567890123456789", "text": "水車", "author_id": "7"}}
    (tmp_path / "index.py").write_text(inline(quick), encoding="utf-8")
    with moto() as session:
        client = session.client("dynamodb")
        client.create_table(**load().table_definition("mill"))
        variables = {"TABLE": "mill-EventData", "QUARANTINE": str(tmp_path / "quarantine")}
        event = event_of(json.dumps(post).encode())
        handler = quick["Resources"][FUNCTION]["Properties"]["Handler"]
        answer, _ = as_lambda(tmp_path, handler, variables, session.url, event)
        assert answer == {"batchItemFailures": []}
        item = client.get_item(TableName="mill-EventData", Key={"Id": {"S": "1234567890123456789"}})["Item"]
    assert item["Message"] == {"S": "水車"}
    assert (tmp_path / "processor.zip").is_file()


def test_every_combination_of_conditions_is_whole(quick: Document) -> None:
    """Whatever is switched on or off, nothing refers to what was left out."""
    for parameters in combinations(quick):
        given = {name: value for name, value in parameters.items() if name in quick["Parameters"]}
        template = Template(quick, given)
        assert template.resolve(template.resources(), symbol)
        for output in quick["Outputs"].values():
            if "Condition" not in output or template.resolve({"Condition": output["Condition"]}, symbol):
                assert template.resolve(output["Value"], symbol)
