"""The `.proto` files of podlink's own gRPC interfaces and the code made from them by `make gen`.

`ca` is the certificate authority's interface, `registry` the registry's. Nothing here is edited by
hand but the `.proto` files.
"""
