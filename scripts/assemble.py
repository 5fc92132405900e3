"""The image's own folder, made of what pip installed: `python scripts/assemble.py /opt/podlink`.

The Dockerfile runs this in its build stage; `make image-dry` runs the same steps into a folder, and says
what the image would hold and how large the sidecar's part of it is.

- `app/`: our packages. `lib/`: what pip put there, less what nothing reads at run time.
- Everything is compiled beforehand: a read-only root could not keep bytecode, and a sidecar would
  take twice as long to start. The bytecode says the hash of its source, not a date.
- `sbom.spdx.json`: name, version and licence of each package (SPDX 2.3).
"""

import compileall
import hashlib
import json
import os
import py_compile
import re
import shutil
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "kit", "proto", "certs", "policy", "registry", "sidecar", "injector", "traces", "cni",
)  # fmt: skip
SIDECAR_PACKAGES = ("kit", "proto", "certs", "policy", "sidecar")
_UNREAD = ("tests", "test", "testing", "__pycache__", "include")
_UNREAD_TYPED = tuple(
    f"kubernetes/{flavour}/{part}"
    for flavour in ("client", "aio/client")
    for part in ("api", "models")
)
"""The Kubernetes client's typed calls and models, 100 MB: loaded on use, and `kit.kube` uses none."""
_UNREAD_SUFFIXES = (".pyi", ".pyx", ".pxd", ".c", ".h", ".proto", ".a")


def assemble(target: Path) -> None:
    """Make `target` whole; `target/lib` is there already."""
    app = target / "app"
    shutil.rmtree(app, ignore_errors=True)
    for package in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__", "*.pyi", "*.proto")
        shutil.copytree(ROOT / package, app / package, ignore=skip)
    crd = Path("charts/podlink/files")
    shutil.copytree(ROOT / crd, app / crd)
    prune(target / "lib")
    if (ROOT / "LICENSE").exists():
        shutil.copy2(ROOT / "LICENSE", target / "LICENSE")
    (target / "sbom.spdx.json").write_text(json.dumps(sbom(target / "lib"), indent=1) + "\n")
    for folder in (app, target / "lib"):
        done = compileall.compile_dir(
            folder, quiet=1, workers=1, stripdir=str(target), prependdir="/opt/podlink",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip
        if not done:
            sys.exit(f"{folder} does not compile")
    _date(target)


def prune(lib: Path) -> None:
    """Take off what no program reads when it runs."""
    for path in sorted(lib.rglob("*"), reverse=True):
        if path.is_dir() and path.name in _UNREAD and path.parent != lib:
            if path.name == "testing" and "grpc" not in path.parts:
                continue
            shutil.rmtree(path)
        elif path.is_file() and path.suffix in _UNREAD_SUFFIXES:
            path.unlink()
    for folder in _UNREAD_TYPED:
        for module in (lib / folder).glob("[!_]*.py"):
            module.unlink()
    shutil.rmtree(lib / "bin", ignore_errors=True)


def sbom(lib: Path) -> dict[str, object]:
    """What pip installed, as SPDX 2.3; the same input gives the same text."""
    found = sorted(
        {
            (d.metadata["Name"], d.version, _licence(d.metadata))
            for d in distributions(path=[str(lib)])
        }
    )
    whole = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    packages = [
        {
            "SPDXID": f"SPDXRef-{re.sub('[^A-Za-z0-9.-]', '-', name)}",
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "licenseComments": licence,
            "externalRefs": [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": f"pkg:pypi/{name.lower()}@{version}",
                }
            ],
        }
        for name, version, licence in found
    ]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "podlink",
        "documentNamespace": f"https://podlink.dev/sbom/{whole}",
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: assemble.py"]},
        "packages": packages,
    }


def _licence(metadata: object) -> str:
    get = metadata.get  # type: ignore[attr-defined]
    return " ".join(str(get("License-Expression") or get("License") or "").split())[:60]


def _date(target: Path) -> None:
    stamp = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    for path in [target, *target.rglob("*")]:
        os.utime(path, (stamp, stamp), follow_symlinks=False)


def size_mib(*paths: Path) -> float:
    """Of the files below, MiB."""
    files = (f for path in paths for f in ([path] if path.is_file() else path.rglob("*")))
    return sum(f.stat().st_size for f in files if f.is_file()) / (1 << 20)


def sidecar_part(target: Path) -> list[Path]:
    """Our packages and the distributions that the sidecar's lock names."""
    names = set(
        re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements/sidecar.lock").read_text(), re.M)
    )
    lib = target / "lib"
    found = [target / "app" / package for package in SIDECAR_PACKAGES]
    tops: set[Path] = set()
    for one in distributions(path=[str(lib)]):
        if re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower() in names:
            for file in one.files or ():
                if (lib / file.parts[0]).exists() and file.parts[0] != "..":
                    tops.add(lib / file.parts[0])
    return [*found, *sorted(tops)]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    assemble(where)
    print(f"our packages and what they need: {size_mib(where):.1f} MiB")
    print(f"of these, the sidecar's part: {size_mib(*sidecar_part(where)):.1f} MiB")
