"""`python -m tests.kubernetes.node.helm install|test|uninstall`: Helm itself, on the node.

In a process of its own: Go's threads stay out of the tests. The kubeconfig is $KUBECONFIG's.
"""

import json
import os
import sys
from pathlib import Path

from scripts.helm import CHART, Helm, HelmRefused

RELEASE, NAMESPACE = "podlink", "podlink-system"


def main(what: str) -> None:
    kubeconfig = Path(os.environ["KUBECONFIG"]).read_text()
    helm = Helm()
    if what == "install":
        said = helm.install(RELEASE, CHART, {}, NAMESPACE, kubeconfig, create_namespace=True)
    elif what == "test":
        said = helm.test(RELEASE, NAMESPACE, kubeconfig)
    else:
        said = helm.uninstall(RELEASE, NAMESPACE, kubeconfig)
    print(json.dumps(said))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except HelmRefused as e:
        sys.exit(str(e))
