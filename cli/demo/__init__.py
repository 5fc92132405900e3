"""`podlink demo`: a small shop on one machine, linked and checked step by step.

- `command`: the command itself.
- `steps`: what is shown, and each thing that is checked.
- `sniff`: a packet capture in the node's network namespace.
- `shop.yaml`, `web`, `api`, `store`: the shop. Its code knows nothing of podlink.
"""
