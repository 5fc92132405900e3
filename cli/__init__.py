"""`podlink`: what an operator types, in a cluster and on one machine.

`__main__` is the click group; each subcommand is a module of its own that is imported only when it
is asked for, so `podlink --help` stays quick.
"""
