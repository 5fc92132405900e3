"""Records that nobody can change unnoticed: a hash chain per sidecar, and checkpoints signed by it.

- `chain`: the hash of a record, the chain while it grows, and a judgement of one that was kept. Pure.
- `signed`: a statement signed with a workload's key, and the check of one against the bundle.

Each link's span carries the chain's id, its own number in it and the hash before it. Now and then the
sidecar signs the hash it has come to. Who holds the spans later, in whatever store, can tell offline
which of them stand as they were written, which were altered, and which are missing.
"""
