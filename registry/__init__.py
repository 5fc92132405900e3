"""The registry: who is where. Watches the API server and tells each sidecar what it asks for.

- `facts`: what is kept of each Kubernetes object, and how it is read. Pure.
- `endpoints`: a Service and its EndpointSlices made into endpoints one may dial. Pure.
- `model`: the state of the cluster, changed fact by fact and asked by key. Pure.
- `policies`: which LinkPolicies are in force, and which of their forms. Pure.
- `answers`: the model's answers as messages of `proto/registry.proto`.
- `hub`: who asked for what, and what each has still to be told.
- `admit`: may this caller speak for this pod. Pure.
- `service`: the gRPC service. `watch`: the informers that feed the model.
- `policy_status`: says in each LinkPolicy's status what became of it.
- `config`, `app`, `__main__`: settings, wiring, start (`python -m registry`).
"""
