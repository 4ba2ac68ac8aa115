"""`python -m tests.stub_gpu [-c CODE | -m MODULE | - | PROGRAM] …`: Python on the stub GPU."""

import runpy
import sys
from pathlib import Path

from tests import stub_gpu


def main() -> None:
    """Runs the program as Python itself would."""
    stub_gpu.install()
    kind, *rest = sys.argv[1:]
    if kind in ("-c", "-"):
        code = rest.pop(0) if kind == "-c" else sys.stdin.read()
        sys.argv = [kind, *rest]
        exec(compile(code, kind, "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


main()
