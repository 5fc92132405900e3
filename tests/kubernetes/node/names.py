"""The cluster's DNS in the place of CoreDNS: `podlink local`'s own, fed from a real API server."""

import asyncio
import sys
from typing import cast

import dns.exception

from kit.kube import Kube, KubeError
from local.apiserver import resources
from local.apiserver.store import Store
from local.node.dns import Names
from tests.kubernetes.node.plan import NODE_IP

_EVERY_S = 0.3


class Answers(asyncio.DatagramProtocol):
    names = Names(Store())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            self._transport.sendto(self.names.answer(data), addr)
        except dns.exception.DNSException:
            return


async def read(kube: Kube) -> Store:
    store = Store()
    for kind, path in (
        (resources.SERVICES, "/api/v1/services"),
        (resources.SLICES, "/apis/discovery.k8s.io/v1/endpointslices"),
    ):
        for one in (await kube.get(path))["items"]:
            store.add(kind.key, one)
    return store


async def main(kubeconfig: str) -> None:
    loop = asyncio.get_running_loop()
    async with await Kube.from_kubeconfig(kubeconfig) as kube:
        await loop.create_datagram_endpoint(Answers, local_addr=(NODE_IP, 53))
        while True:
            try:
                Answers.names = Names(await read(kube))
            except KubeError as e:
                print(e, flush=True)
            await asyncio.sleep(_EVERY_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
