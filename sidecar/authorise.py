"""The receiver's verdict as the data plane takes it: a Permit in hand, or an error with its reason.

Pure. The rules themselves are `policy`, which the registry and the CLI share.
"""

from certs.trust.identity import WorkloadIdentity
from policy.judge import Denial, Permit, judge
from policy.rules import PolicySet
from sidecar.errors import Denied, PlaintextDenied


def authorise(
    peer: WorkloadIdentity | None, peer_ip: str, port: int, in_force: PolicySet
) -> Permit:
    """Return a Permit or raise Denied (PlaintextDenied for a peer without identity).

    Arguments as for `policy.judge.judge`.
    """
    verdict = judge(peer, peer_ip, port, in_force)
    if isinstance(verdict, Denial):
        raise refusal(verdict)
    return verdict


def refusal(denial: Denial) -> Denied:
    """The error that stands for a denial."""
    kind = PlaintextDenied if denial.plaintext else Denied
    return kind(denial.text, policy=denial.policy, rule=denial.rule, nearest=denial.nearest)
