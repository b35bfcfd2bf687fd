"""Generate `federation/v1` from the protos beside this file, or with ``--check`` tell whether it is up to date."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).parent
TARGET = PROTOS.parent / "federation" / "v1"
HEAD = '"""Generated from protos/ by `make proto`; never edited."""\n'


def generate(folder: Path) -> None:
    """Write the generated modules and their type stubs under `folder`.

    Raises:
        SystemExit: protoc refused a proto; it has said why on standard error.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={folder}", f"--pyi_out={folder}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit(1)
    (folder / "federation" / "v1" / "__init__.py").write_text(HEAD)


def main() -> None:
    """Regenerate, or compare with ``--check``."""
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name))
        fresh = {path.name: path.read_bytes() for path in (Path(name) / "federation" / "v1").iterdir()}
    present = {path.name: path.read_bytes() for path in TARGET.iterdir() if path.is_file()} if TARGET.exists() else {}
    if "--check" in sys.argv[1:]:
        stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
        if stale:
            print(f"out of date: {', '.join(stale)}; run `make proto` and commit the result", file=sys.stderr)
            raise SystemExit(1)
        return
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in present.keys() - fresh.keys():
        (TARGET / name).unlink()
    for name, content in fresh.items():
        (TARGET / name).write_bytes(content)


if __name__ == "__main__":
    main()
