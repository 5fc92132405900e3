"""The node: runs each admitted pod as namespaces and processes.

- `init`: the first process of the cluster; it forks pods and containers and reaps everything.
- `container`: what a container's first process does, from fork to exec. `rootfs` builds its files.
- `spawner`: the daemon's wire to `init`.
- `network`: the bridge, the pods' links and addresses. `proxy`: ClusterIPs, as kube-proxy does.
- `kubelet` starts a `podworker` per pod; `specs`, `environment`, `volumes`, `probes` and
  `podstatus`
  are its parts.
- `dns`: the names of Services and pods.
- `daemon`: puts it all together in one asyncio loop.

`init`, `container` and `rootfs` are forked before anything heavy is imported; keep it so.
"""
