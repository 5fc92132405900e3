"""`python -m cni.install`: puts the plugin onto the node, keeps it chained, and takes it off at the end.

The plugin is run on the node, outside of any container, where there may be no Python. So the image's
own loader, interpreter, libraries and nft are copied beside it, and a script of /bin/sh starts them.
A node without /bin/sh (Talos, Bottlerocket) cannot run it: use the init container there.

During an update the new installer starts before the old one ends, and says so in a file: the old one
then leaves the chain as it is, so that no pod starts uncaptured in between. Without a successor it takes
the plugin out of the chain and off the node, but for a stub: a runtime that remembers the chain of a
running pod (CRI-O) asks it to take that pod down.

Every file is written beside its place and renamed, so that the runtime never sees half of one.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cni.plugin import CAPABILITY
from kit.logs import start_logging
from kit.settings import ConfigInvalid, Settings

NAME = "podlink"
_TREE = ".podlink"
_OWNER = ".podlink-owner"
_SETTLE_S = 2.0
"""How long the runtime may take to see its new configuration before the plugin is gone."""
_STUB = """\
#!/bin/sh
# podlink has been taken off this node. Whoever remembers it may take pods down, and start none.
[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{"code": 999, "msg": "podlink: the plugin was taken off this node"}'
exit 1
"""
_RECHECK_S = 10.0
_OUR_PACKAGES = ("kit", "sidecar", "cni")
_log = logging.getLogger("podlink.cni")


def chained(conf: dict[str, Any], exclude: Iterable[str]) -> dict[str, Any]:
    """The cluster's network configuration with our plugin at its end, once. Pure.

    A single plugin's configuration (`.conf`) becomes a list. Raises ValueError for what is neither.
    """
    ours = {"type": NAME, "capabilities": {CAPABILITY: True}, "excludeNamespaces": sorted(exclude)}
    if "plugins" not in conf:
        if "type" not in conf or "name" not in conf:
            raise ValueError("it is no CNI network configuration")
        version = conf.get("cniVersion", "0.3.1")
        plugin = {key: value for key, value in conf.items() if key not in ("cniVersion", "name")}
        conf = {"cniVersion": version, "name": conf["name"], "plugins": [plugin]}
    return {**conf, "plugins": [*(p for p in conf["plugins"] if p.get("type") != NAME), ours]}


def unchained(conf: dict[str, Any]) -> dict[str, Any]:
    """The same without our plugin. Pure."""
    return {**conf, "plugins": [p for p in conf.get("plugins", []) if p.get("type") != NAME]}


def cluster_conf(folder: Path) -> Path | None:
    """The file that the runtime uses: the first in order of names (libcni)."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".conf", ".conflist", ".json"))
    return files[0] if files else None


def chain(folder: Path, exclude: Iterable[str]) -> bool:
    """See to it that the cluster's configuration ends with us; whether it had to be changed.

    Raises ValueError and OSError.
    """
    path = cluster_conf(folder)
    if path is None:
        raise ValueError(
            f"no CNI configuration in {folder} yet: is the cluster's own plugin there?"
        )
    now = json.loads(path.read_text())
    wanted = chained(now, exclude)
    if wanted == now:
        return False
    _write(path.with_suffix(".conflist"), json.dumps(wanted, indent=2) + "\n", 0o600)
    if path.suffix != ".conflist":
        path.rename(path.with_name(path.name + ".podlink-bak"))
    return True


def unchain(folder: Path) -> None:
    """Give the cluster its own configuration back."""
    path = cluster_conf(folder)
    if path is None:
        return
    backup = next(iter(folder.glob(f"{path.stem}.*.podlink-bak")), None)
    if backup is not None:
        backup.rename(backup.with_name(backup.name.removesuffix(".podlink-bak")))
        path.unlink()
        return
    now = json.loads(path.read_text())
    if any(p.get("type") == NAME for p in now.get("plugins", ())):
        _write(path, json.dumps(unchained(now), indent=2) + "\n", 0o600)


def put_plugin(bin_dir: Path) -> None:
    """Copy what the plugin needs, then the script that starts it. Raises OSError, ValueError."""
    tree = bin_dir / _TREE
    fresh = bin_dir / f"{_TREE}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "lib").mkdir(parents=True)
    python = Path(sys.executable).resolve()
    nft = shutil.which("nft")
    if nft is None:
        raise ValueError("nft is missing from the image")
    for program, name in ((python, "python"), (Path(nft), "nft")):
        shutil.copy2(program, fresh / name)
        for library in _libraries(program):
            shutil.copy2(library, fresh / "lib" / library.name)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = Path(os.__file__).parent
    skip = shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib", "tkinter")
    shutil.copytree(stdlib, fresh / "lib" / version, ignore=skip, symlinks=False)
    for extension in (fresh / "lib" / version / "lib-dynload").glob("*.so"):
        for library in _libraries(extension):
            target = fresh / "lib" / library.name
            if not target.exists():
                shutil.copy2(library, target)
    source = Path(__file__).parents[1]
    for package in _OUR_PACKAGES:
        shutil.copytree(source / package, fresh / "podlink" / package)
    loader = next(one for one in _libraries(python) if one.name.startswith("ld-"))
    old = bin_dir / f"{_TREE}.old"
    shutil.rmtree(old, ignore_errors=True)
    if tree.exists():
        tree.rename(old)
    fresh.rename(tree)
    _write(bin_dir / NAME, _script(loader.name), 0o755)
    shutil.rmtree(old, ignore_errors=True)


def claim(bin_dir: Path, owner: str) -> None:
    """From now on this installer looks after the node. Raises OSError."""
    _write(bin_dir / _OWNER, owner, 0o644)


def owned(bin_dir: Path, owner: str) -> bool:
    try:
        return (bin_dir / _OWNER).read_text() == owner
    except OSError:
        return False


def take_away(bin_dir: Path) -> None:
    """What `put_plugin` put there, but for the stub."""
    _write(bin_dir / NAME, _STUB, 0o755)
    (bin_dir / _OWNER).unlink(missing_ok=True)
    shutil.rmtree(bin_dir / _TREE, ignore_errors=True)


def _script(loader: str) -> str:
    """It finds its tree beside itself: the node knows this folder by another name than we do."""
    return f"""#!/bin/sh
here=$(dirname "$0")/{_TREE}
export PYTHONHOME="$here" PYTHONPATH="$here/podlink" PYTHONDONTWRITEBYTECODE=1
export PODLINK_NFT="$here/lib/{loader} --library-path $here/lib $here/nft"
exec "$here/lib/{loader}" --library-path "$here/lib" "$here/python" -m cni
"""


def _libraries(program: Path) -> list[Path]:
    """What the dynamic loader would load, and the loader itself (ldd(1))."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    words = (word for line in done.stdout.splitlines() for word in line.split())
    return [Path(word) for word in words if word.startswith("/") and Path(word).exists()]


def _write(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.rename(path)


def main() -> None:
    settings = Settings()
    start_logging()
    bin_dir = settings.path("PODLINK_CNI_BIN_DIR", "/host/bin")
    conf_dir = settings.path("PODLINK_CNI_CONF_DIR", "/host/conf")
    owner = settings.text("PODLINK_CNI_OWNER", "installer")
    text = settings.optional("PODLINK_CNI_EXCLUDE_NAMESPACES") or ""
    exclude = [one for one in text.split(",") if one]
    if "--check" in sys.argv[1:]:
        path = cluster_conf(conf_dir)
        here = path is not None and f'"{NAME}"' in path.read_text() and (bin_dir / NAME).exists()
        sys.exit(0 if here and owned(bin_dir, owner) else 1)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    try:
        put_plugin(bin_dir)
        claim(bin_dir, owner)
    except (OSError, ValueError) as e:
        raise ConfigInvalid(f"the plugin cannot be put into {bin_dir}: {e}") from e
    _log.info("plugin in place")
    while not told.is_set():
        try:
            if chain(conf_dir, exclude):
                _log.info("chained after the cluster's own plugin")
        except (OSError, ValueError) as e:
            _log.warning("not chained", extra={"error": str(e)})
        told.wait(_RECHECK_S)
    if not owned(bin_dir, owner):
        _log.info("another installer has taken over")
        return
    unchain(conf_dir)
    _log.info("taken out of the chain")
    time.sleep(_SETTLE_S)
    if owned(bin_dir, owner):  # nobody has come since
        take_away(bin_dir)


if __name__ == "__main__":
    main()
