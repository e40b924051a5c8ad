from io import BytesIO
from zipfile import ZipFile

from deploy.package import CODE, package
from local.template import load


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


def test_same_code_is_the_same_zip() -> None:
    """Nothing in it is of now: the key in the bucket, its digest, changes with the code alone."""
    with ZipFile(BytesIO(package())) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert package() == package()


def test_handler_of_the_template_is_in_it() -> None:
    """The function that the stack names is in a module of the zip."""
    module = load().function("mill").handler.rpartition(".")[0]
    with ZipFile(BytesIO(package())) as archive:
        assert f"{module.replace('.', '/')}.py" in archive.namelist()
