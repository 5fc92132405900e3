"""The code that holds the signing key. Only `certs.server` may import it.

- `issue`: template, sign, read back. The one path by which a certificate comes to be.
- `keys`: makes a root; reads a signing key with its chain and refuses what does not fit.
- `store`: keeps both in a Secret, and settles who was first.
"""
