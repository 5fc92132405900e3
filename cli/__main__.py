"""The `podlink` command. A new subcommand is one line in COMMANDS."""

import importlib
import sys

import click

from kit.contract import VERSION

COMMANDS = {
    "install": ("cli.install:install", "Print podlink's objects for kubectl apply."),
    "check": ("cli.check:check", "Is all well? What to do where it is not."),
    "inject": ("cli.inject:inject", "Put the sidecar into manifests."),
    "upgrade": ("cli.upgrade:upgrade", "Print this version's objects for kubectl apply."),
    "uninstall": ("cli.uninstall:uninstall", "Print all that is podlink's for kubectl delete."),
    "authz": ("cli.authz:authz", "Who may reach a pod, and by which rule."),
    "explain": ("cli.explain:explain", "What becomes of a link, step by step, and why."),
    "policy": ("cli.policy:policy", "Check, replay and suggest LinkPolicies."),
    "certs": ("cli.certs:certs", "Leaves that live, and who is banned."),
    "rotate": ("cli.rotate:rotate", "Replace the root of the mesh."),
    "demo": ("cli.demo.command:demo", "Show a linked shop on this machine, checked step by step."),
    "dashboard": ("cli.dashboard:dashboard", "The review page in a browser."),
    "endpoints": ("cli.endpoints:endpoints", "A sidecar's view of its Services beside the API's."),
    "report": ("cli.report:report", "A signed report of a time; and whether one is genuine."),
    "tap": ("cli.tap:tap", "Each link of a pod as it ends, live."),
    "verify-link": ("cli.verify_link:verify_link", "Prove the path from one pod to another."),
    "links": ("cli.links:links", "Who talked to whom, as whom, and how."),
    "trace": ("cli.trace:trace", "One trace, both sides of each link."),
    "local": ("cli.local:local", "Run a cluster on this machine."),
}
"""Name -> (module:attribute of the click command, one line of help). Imported when it is used."""


class LazyGroup(click.Group):
    """A group that imports a subcommand only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="podlink")
def podlink() -> None:
    """Secure direct pod links for Kubernetes, with a trace of every link."""


def main() -> None:
    """The entry point. Ctrl-C ends it with status 130 and no traceback."""
    try:
        # Outside its standalone mode click hands the status of an Exit back.
        if isinstance(status := podlink.main(standalone_mode=False), int):
            sys.exit(status)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
