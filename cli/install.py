"""`podlink install`: prints podlink's objects, for `kubectl apply -f -`."""

import click

from certs.trust.identity import IdentityMalformed, check_trust_domain
from cli.objects import DEFAULT_IMAGE, ChoiceRefused, Choices, build, dump, token_secret
from kit.contract import DEFAULT_TRUST_DOMAIN, SYSTEM_NAMESPACE


@click.command()
@click.option("-n", "--namespace", default=SYSTEM_NAMESPACE, show_default=True)
@click.option("--image", default=DEFAULT_IMAGE, show_default=True, help="Of every program.")
@click.option("--trust-domain", default=DEFAULT_TRUST_DOMAIN, show_default=True)
@click.option("--cni", is_flag=True, help="Capture by a CNI plugin: pods need no NET_ADMIN.")
@click.option("--no-guard", is_flag=True, help="For Kubernetes before 1.30.")
@click.option("--only-namespace", default="", help="Serve this one namespace.")
def install(
    namespace: str, image: str, trust_domain: str, cni: bool, no_guard: bool, only_namespace: str
) -> None:
    """Print what `kubectl apply -f -` is to create. Nothing is asked of the cluster.

    The same objects as the Helm chart's; for choices beyond these, use the chart.
    """
    try:
        check_trust_domain(trust_domain)
        choices = Choices(
            namespace=namespace, image=image, trust_domain=trust_domain, cni=cni,
            guard=not no_guard, only_namespace=only_namespace,
        )  # fmt: skip
        objects = build(choices)
    except IdentityMalformed as e:
        raise click.UsageError(f"--trust-domain: {e}") from e
    except ChoiceRefused as e:
        raise click.UsageError(str(e)) from e
    # After its namespace, before the program that mounts it.
    first = next(n for n, one in enumerate(objects) if one["kind"] == "Namespace")
    objects.insert(first + 1, token_secret(namespace))
    click.echo(dump(objects), nl=False)
