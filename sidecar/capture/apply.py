"""Loads the plan and proves it. Everything that can go wrong ends in one readable line."""

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from sidecar.capture import routes
from sidecar.capture.canary import NotCaptured, has_route, prove_captured
from sidecar.capture.in_use import in_use
from sidecar.capture.plan import TABLE, CapturePlan
from sidecar.source_address import RANGES, in_the_way


class CaptureFailed(Exception):
    """The pod must not start: its connections would leave it in plaintext. One readable line."""


def apply(plan: CapturePlan) -> list[str]:
    """Load `plan` in one transaction, prove it, and say in words what was proven.

    Raises CaptureFailed. On failure nothing of ours is left in the kernel.
    """
    why_not = put_in_place(plan)
    proven: list[str] = []
    try:
        for version in (4, 6):
            if has_route(version):
                prove_captured(version)
                proven.append(f"IPv{version} captured")
            else:
                proven.append(f"no IPv{version} route, rules in place")
        proven.append(f"source address: {why_not or 'rules in place'}")
    except NotCaptured as e:
        load(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        raise CaptureFailed(str(e)) from e
    return proven


def put_in_place(plan: CapturePlan, nft: Sequence[str] = ()) -> str:
    """Load `plan` and make its stand-ins local, in this network namespace; or load it without them,
    and say why. What the app sees as its caller's address is no reason to keep a pod from starting.

    Raises CaptureFailed.
    """
    why_not = "the pod's own, as it asks for" if not plan.show_source else _make_room()
    if not why_not:
        try:
            load(plan.ruleset(), nft)
            return ""
        except CaptureFailed as e:
            why_not = f"the pod's own: {e}"
    load(replace(plan, show_source=False).ruleset(), nft)
    for version in RANGES:
        with contextlib.suppress(OSError):
            routes.give_up(version)
    return why_not


def _make_room() -> str:
    """Make the stand-ins' ranges local; why that cannot be, if so."""
    taken = in_the_way(in_use())
    if taken is not None:
        return f"the pod's own: {taken} is in use here, and lies in what would stand for peers"
    refused = []
    for version in RANGES:
        try:
            routes.make_local(version)
        except OSError as e:  # most likely there is no IPv6 here
            refused.append(str(e))
    return f"the pod's own: {'; '.join(refused)}" if len(refused) == len(RANGES) else ""


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
