"""Puts the redirect rules into the pod's network namespace, proves them, and exits.

- `plan`: the nft ruleset as text. Pure.
- `canary`: opens a connection and sees where it really lands.
- `routes`: makes the ranges local that stand for peers' addresses. `in_use`: what must not be hidden
  by them.
- `apply`: loads the plan in one transaction and proves it.

Runs once, as the pod's first init container, with NET_ADMIN and nothing else.
"""
