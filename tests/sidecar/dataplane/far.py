"""A far proxy in a process of its own, for tests that take something away from a real process.

The first line of standard input is JSON: key, chain and bundle (PEM) and settings. It prints where it
listens, and its state for each further line, until its input ends.
"""

import asyncio
import json
import sys

from certs.trust.contexts import TlsMaterial
from kit.clock import monotonic
from kit.settings import Settings
from policy.rules import PolicySet
from sidecar import sockets
from sidecar.carrier import Carrier, trust_of
from sidecar.config import SidecarConfig
from sidecar.dataplane.loop.listener import Listener
from sidecar.dataplane.loop.poller import DataLoop
from sidecar.memory import used_bytes
from tests.sidecar.dataplane.conftest import API, FakeDirectory
from tests.sidecar.test_config import GOOD


async def main() -> None:
    loop = asyncio.get_running_loop()
    told = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    config = SidecarConfig.from_settings(Settings({**GOOD, **told["settings"]}))
    carrier = Carrier(loop, config, FakeDirectory(), lambda record: None)
    plane = carrier.plane
    plane.policy, plane.unsettled = PolicySet(), False
    material = TlsMaterial(told["key"].encode(), told["chain"].encode(), told["bundle"].encode())
    plane.trust = trust_of(material, str(API), monotonic() + 3600)
    listening = sockets.listen("127.0.0.1", 0)
    listener = Listener(plane.poller, listening, carrier.arrivals.accepted)
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        state = {
            "links": len(plane.live),
            "shedding": plane.shedding,
            "used": used_bytes(),
            "turned_away": plane.turned_away,
        }
        print(json.dumps(state), flush=True)
    listener.close()
    carrier.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=DataLoop) as runner:
        runner.run(main())
