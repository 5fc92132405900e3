"""Makes what is generated: gRPC code from proto/*.proto, and the table of reasons in docs/.

python scripts/gen.py           make them
python scripts/gen.py --docs    only the documents
python scripts/gen.py --check   fail if what is committed differs from what would be made
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ("proto/ca.proto", "proto/registry.proto", "proto/workload.proto")


def make_code(into: Path) -> None:
    """Write the modules of every .proto file below `into`."""
    plugins = Path(sys.executable).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
            *(f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            *(f"--plugin={plugins / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
            *PROTOS,
        ],
        cwd=ROOT,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def check() -> list[str]:
    """The generated files that are missing or out of date."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        make_code(into)
        stale = []
        for made in sorted((into / "proto").iterdir()):
            kept = ROOT / "proto" / made.name
            if not kept.exists() or kept.read_text() != made.read_text():
                stale.append(f"proto/{made.name}")
        return stale


def main() -> None:
    if "--check" in sys.argv:
        if stale := check():
            sys.exit(f"out of date, run make gen: {', '.join(stale)}")
    else:
        make_code(ROOT)


if __name__ == "__main__":
    main()
