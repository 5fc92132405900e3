"""A cluster on one machine: an API server stand-in and pods as network namespaces.

- `cluster`: the Python API that tests and the demo use; `client` and `control` are its two wires.
- `supervisor`: opens the host's sockets, makes the namespaces, and cleans up whatever happens.
- `apiserver`: the subset of the Kubernetes API that podlink uses.
- `controllers`: what turns Deployments into pods and Services into endpoints.
- `node`: runs pods: namespaces, network, volumes, containers, probes, names, ClusterIPs.
- `linux`: the system calls that Python lacks.

Everything lives inside one user, network, mount and pid namespace of its own; when its first
process ends, the kernel removes all of it. The host's network and files are never changed.
"""
