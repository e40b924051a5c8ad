"""
The stand-ins from the command line.

    python -m local demo        all of it, with the daemon, some trouble and a reconciliation
    python -m local x ...       the X API; further arguments: python -m local x --help
    python -m local aws ...     Kinesis, the table and the event source mapping: python -m local aws --help
"""

import os
import sys

MODULES = "a Python module is missing: {}; `make setup` installs what is needed into .venv"


def main(arguments: list[str]) -> int:
    """Run one of them and return its exit code."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "demo" and not rest:
            from local import demo  # noqa: PLC0415 - each command needs other libraries

            return demo.main(os.environ)
        if command == "x":
            from local.x_api import server  # noqa: PLC0415 - as above

            return server.main(rest)
        if command == "aws":
            from local import aws  # noqa: PLC0415 - as above

            return aws.main(rest)
    except ModuleNotFoundError as error:
        print(MODULES.format(error.name), file=sys.stderr)
        return 1
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
