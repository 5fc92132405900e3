"""Defences, each with the change that breaks it and the tests that must fail then.

- `*.toml`: the defences, a table `[[mutant]]` each. One file per part of podlink.
- `table`: reads them, and says what of them does not fit the tree any more. Pure but for reading files.
- `__main__`: breaks one after the other in a copy of the tree and runs the tests (`make mutants`).
"""
