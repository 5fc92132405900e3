"""The CA as a program: `python -m certs.server`.

A call is admitted in this order, and each step has one file:

    access      may this kind of caller use this RPC at all (the whole table)
    review      who is the caller: what a TokenReview says. Pure
    pods        is its pod still there, and which addresses are its own. Pure
    tokens      asks the API server for both
    limits      how often, and how many at once
    csr         the public key, and the proof that the caller holds the other half. Pure
    service     the two RPCs, put together from the above
    refusals    every way to say no; what the caller reads, and what only the log gets

Beside it: `own_leaf` (the CA's own TLS), `feed` (the bundle, and who has it), `publish` (the bundle
as ConfigMaps), `issuance` (a record of each certificate),
`refusal_log` (a bounded log of refusals), `config`, `app`.
"""
