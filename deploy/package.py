"""
The code of the processor as a zip for Lambda: the same bytes for the same code, whenever it is made.

    python -m deploy.package FILE       writes the zip and prints the key that it should have in the bucket

The zip holds the folder `processor` itself, since the handler is called processor.handler.handle. Its key holds its
digest: a new key is what makes CloudFormation take new code.
"""

import sys
from collections.abc import Sequence
from hashlib import sha256
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


def key_of(content: bytes) -> str:
    """Return where the zip lies in its bucket."""
    return f"millrace/{sha256(content).hexdigest()[:16]}.zip"


def main(arguments: Sequence[str]) -> int:
    """Write the zip to the file that is named; return the exit code."""
    if len(arguments) != 1:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    content = package()
    try:
        Path(arguments[0]).write_bytes(content)
    except OSError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(key_of(content))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
