"""What turns one object into another: workloads into pods, Services into EndpointSlices.

- `endpoints`: EndpointSlices of Services with a selector.
- `workloads`: Deployments, ReplicaSets and StatefulSets.
- `lifecycle`: namespaces that end, and objects whose owner is gone.
- `loop`: calls them when what they look at has changed.
"""
