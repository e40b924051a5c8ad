"""
The code of the processor as a zip for Lambda: the same bytes for the same code, whenever it is made.

The zip holds the folder `processor` itself, since the handler is called processor.handler.handle.
"""

from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

CODE = Path(__file__).parent.parent / "processor"
# Lambda reads the code as another user than its owner.
EVERYBODY_READS = 0o100644 << 16


def package() -> bytes:
    """Return the zip."""
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        for path in sorted(CODE.glob("*.py")):
            # Without a time of its own an entry is of 1980: what a checkout does to times must not change the digest.
            entry = ZipInfo(f"{CODE.name}/{path.name}")
            entry.external_attr = EVERYBODY_READS
            archive.writestr(entry, path.read_bytes(), ZIP_DEFLATED, 9)
    return content.getvalue()
