import subprocess
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from deploy.package import CODE, key_of, main, package
from local.template import load

ROOT = Path(__file__).resolve().parents[2]


def test_zip_holds_all_of_the_code_and_nothing_else() -> None:
    """Each module of the processor is in it, byte for byte, under its folder, readable for everybody."""
    with ZipFile(BytesIO(package())) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"processor/{path.name}": path.read_bytes() for path in CODE.glob("*.py")
        }
        assert {entry.external_attr >> 16 & 0o777 for entry in archive.infolist()} == {0o644}


def test_zip_is_small() -> None:
    """Below 100 KB: it starts fast, and is sent in a moment."""
    assert len(package()) < 100_000


def test_same_code_is_the_same_key(tmp_path: Path) -> None:
    """Two processes make the same bytes; other bytes have another key."""
    keys = [
        subprocess.run(
            [sys.executable, "-m", "deploy.package", str(tmp_path / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("a.zip", "b.zip")
    ]
    assert keys == [key_of(package())] * 2
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes() == package()
    assert key_of(package() + b"x") != keys[0]


def test_handler_of_the_template_is_in_it() -> None:
    """The function that the stack names is in a module of the zip."""
    module = load().function("mill").handler.rpartition(".")[0]
    with ZipFile(BytesIO(package())) as archive:
        assert f"{module.replace('.', '/')}.py" in archive.namelist()


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_wrong_arguments_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It takes one file; anything else is explained."""
    assert main(arguments) == 2
    assert "python -m deploy.package FILE" in capsys.readouterr().err


def test_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing folder is told with its name."""
    assert main([str(tmp_path / "nowhere" / "a.zip")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
