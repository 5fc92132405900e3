"""Runs the few system programs the node needs, with errors that say what to install."""

import asyncio
import os
import shutil

from local.errors import Unusable

PACKAGES = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
_SYSTEM_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def find(tool: str, search_path: str) -> str | None:
    """Where a program is; directories for the administrator count even if the PATH lacks them."""
    return shutil.which(tool, path=f"{search_path}{os.pathsep}{_SYSTEM_PATH}")


def require(search_path: str) -> None:
    """Raise Unusable naming the Debian package of the first tool that is missing."""
    for tool, package in PACKAGES.items():
        if find(tool, search_path) is None:
            raise Unusable(f"{tool} is not installed: it is in the Debian package {package}")


async def run(*argv: str, feed: str = "") -> str:
    """Run a program to its end and return its output. Raises Unusable with its own words."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(feed.encode())
    if process.returncode != 0:
        said = " ".join(err.decode("utf-8", "replace").split())
        raise Unusable(f"{' '.join(argv[:4])} failed: {said[:300]}")
    return out.decode()
