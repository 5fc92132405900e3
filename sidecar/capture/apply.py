"""Loads the plan and proves it. Everything that can go wrong ends in one readable line."""

import shutil
import subprocess
from collections.abc import Sequence

from sidecar.capture.canary import NotCaptured, has_route, prove_captured
from sidecar.capture.plan import TABLE, CapturePlan


class CaptureFailed(Exception):
    """The pod must not start: its connections would leave it in plaintext. One readable line."""


def apply(plan: CapturePlan) -> list[str]:
    """Load `plan` in one transaction, prove it, and say in words what was proven.

    Raises CaptureFailed. On failure nothing of ours is left in the kernel.
    """
    load(plan.ruleset())
    proven: list[str] = []
    try:
        for version in (4, 6):
            if has_route(version):
                prove_captured(version)
                proven.append(f"IPv{version} captured")
            else:
                proven.append(f"no IPv{version} route, rules in place")
    except NotCaptured as e:
        load(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        raise CaptureFailed(str(e)) from e
    return proven


def load(ruleset: str, nft: Sequence[str] = ()) -> None:
    """Give the ruleset to nft, in one transaction. `nft` is how to run it, if not by PATH.

    Raises CaptureFailed.
    """
    if not nft:
        found = shutil.which("nft")
        if found is None:
            raise CaptureFailed("nft is missing: install the package nftables in the image")
        nft = [found]
    done = subprocess.run([*nft, "-f", "-"], input=ruleset, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        hint = ""
        if "Operation not permitted" in done.stderr:
            hint = "; the container needs the capability NET_ADMIN and nothing else"
        elif "No such file" in done.stderr or "not supported" in done.stderr:
            hint = "; the node's kernel lacks nf_tables NAT (modules nft_redir, nft_chain_nat)"
        raise CaptureFailed(f"nft refused the rules: {said}{hint}")
