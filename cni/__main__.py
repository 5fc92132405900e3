"""`python -m cni`: the plugin, as the container runtime runs it."""

import sys

from cni.plugin import main

if __name__ == "__main__":
    sys.exit(main())
