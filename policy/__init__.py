"""May this link be? Pure decisions over values, shared by every program that must agree on them.

- `rules`: what is in force for one pod: policies, their rules and the mesh default.
- `judge`: the verdict, from the peer's identity and what is in force; why, and what came nearest.
- `selector`: which pods a policy selects.
- `linkpolicy`: a LinkPolicy object into a compiled policy, or the field that is wrong with it.

The sidecar enforces with it, the registry compiles with it, the store and the CLI replay with it.
"""
