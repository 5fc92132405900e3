"""Says in one line which Debian packages are missing: `python scripts/needs.py demo|test|bench`.

The commands that each word needs stand here beside the package that brings them; the packages
themselves are listed once, in requirements/debian.txt, and a test compares the two.
"""

import os
import shutil
import sys

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_LOCAL = {"nft": "nftables", "ip": "iproute2", "unshare": "util-linux", "curl": "curl"}
_TEST = _LOCAL | {
    "openssl": "openssl",
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "redis-benchmark": "redis-tools",
    "psql": "postgresql",
    "pgbench": "postgresql-contrib",
    "tcpdump": "tcpdump",
    "nc": "netcat-openbsd",
    "iptables-legacy": "iptables",
    "chromium": "chromium",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
"""Any of them can try the review page."""
NEEDS = {"demo": _LOCAL, "test": _TEST, "bench": {"haproxy": "haproxy"}}


def missing(word: str) -> list[str]:
    """The packages that lack for `word`, sorted."""
    path = os.environ.get("PATH", "") + os.pathsep + _SBIN
    lacking = {p for command, p in NEEDS[word].items() if shutil.which(command, path=path) is None}
    if word == "test" and "postgresql" not in lacking and not _postgres_server():
        lacking.add("postgresql")
    if any(shutil.which(browser, path=path) for browser in BROWSERS):
        lacking.discard("chromium")
    return sorted(lacking)


def _postgres_server() -> bool:
    folder = "/usr/lib/postgresql"
    return os.path.isdir(folder) and any(
        os.access(os.path.join(folder, version, "bin", "postgres"), os.X_OK)
        for version in os.listdir(folder)
    )


if __name__ == "__main__":
    if packages := missing(sys.argv[1]):
        sys.exit(f"make {sys.argv[1]} needs these packages: apt-get install {' '.join(packages)}")
