"""The CNI plugin: captures a pod's connections from the node, so that pods need no capability.

Chained after the cluster's own plugin, and run by the container runtime as root for each new pod (CNI
specification 1.0.0). It enters the pod's network namespace by its path and loads the same rules as the
init container would (`sidecar.capture.plan`). Which pods, and what to leave alone, stands in the pod's
annotation that the injector wrote; the runtime hands it over by the capability
`io.kubernetes.cri.pod-annotations` (containerd, CRI-O), so the node needs no right at the API server.

- `plugin`: what the runtime runs, `python -m cni`. - `install`: puts it onto the node.
"""
