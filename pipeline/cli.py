"""The `promptmill` command: finds its sub-commands, imports one only when it is used, and never shows a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import pkgutil
import sys
from typing import Any, Final

import click

from pipeline import plugins
from pipeline.errors import ConfigurationError, PipelineError, StorageFull, TransportError
from pipeline.startup import UNREACHABLE, refuse

_OURS: Final = {
    "up": ("pipeline.commands_up:up", "Run the whole gateway on this machine."),
    "demo": ("pipeline.commands_up:demo", "Run a gateway with an echo model and an example prompt manager."),
    "check": ("pipeline.commands_check:check", "Say what a configuration means, and what is wrong with it."),
    "status": ("pipeline.commands_status:status", "Show processes, backlogs and dead letters."),
    "down": ("pipeline.commands_down:down", "Stop the gateway that `up` or `batch run` started."),
    "dead": ("pipeline.commands_dead:dead", "List, show, replay or drop dead letters."),
}

_BROUGHT: Final = {
    "ingress": "Run one process of the HTTP edge.",
    "worker": "Run one or more stages in this process.",
    "feed": "Own batches: feed their lines, collect the answers.",
    "batch": "Run batches: submit, watch, download, retry what failed.",
    "prompt": "Try a prompt manager on this machine, without a server.",
}
"""Short help for what our own packages bring, so that the list needs no import of theirs."""

_INTERRUPTED: Final = 130

_HELP: Final = """\b
An LLM gateway: your prompt managers, any OpenAI client, any provider.

\b
Examples:
  promptmill demo                              try it: no key, no Redis, no configuration
  promptmill --config config.yaml --port 4000  run a gateway (the same as `promptmill up ...`)
  promptmill up -c config.yaml --scale dispatch=4
  promptmill check -c config.yaml              what does this file mean, and what is wrong with it
  promptmill status                            processes, backlogs, dead letters

\b
Redis: REDIS_URL, or promptmill_settings.redis_url, or else a server that `up` starts by itself
and keeps in the data directory (.promptmill beside the configuration).

\b
Exit codes: 0 ok, 1 findings, 2 wrong usage or configuration, 3 Redis cannot be reached.
NO_COLOR turns colours off; data goes to standard output, everything else to standard error."""


class Commands(click.Group):
    """The sub-commands by name: ours, and those that packages register as entry points."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read options without a sub-command as those of `up`, as LiteLLM's command line has it."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version", "-v"):
            args = ["up", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every name, without importing anything."""
        return [*_OURS, *(name for name in plugins.commands() if name not in _OURS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        found: Any = None
        if cmd_name in _OURS:
            found = pkgutil.resolve_name(_OURS[cmd_name][0])
        elif entry := plugins.commands().get(cmd_name):
            found = entry.load()
        return found if isinstance(found, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command the words name; suggest the closest for one that there is not."""
        if args and args[0] not in (known := self.list_commands(ctx)):
            close = difflib.get_close_matches(args[0], known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known)}."
            raise click.UsageError(f"There is no command {args[0]!r}; {remedy}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the short help we know by heart: nothing is imported for it."""
        rows = [(name, text) for name, (_, text) in _OURS.items()]
        rows += [(name, _BROUGHT.get(name, e.value)) for name, e in plugins.commands().items() if name not in _OURS]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-v", "--version", package_name="promptmill", message="promptmill %(version)s")
def promptmill() -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Run the command line and end the process; what can be expected to go wrong is told in words."""
    try:
        status = promptmill.main(args, prog_name="promptmill", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except ConfigurationError as error:
        refuse(error)
    except TransportError as error:
        refuse(error, UNREACHABLE)
    except PipelineError as error:
        refuse(error, 1)
    except BrokenPipeError:  # `promptmill status | head`: nobody reads on
        _close_output()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _close_output()
        refuse(StorageFull("there is no space for the output; make room, or send it elsewhere"), 1)
    sys.exit(status if isinstance(status, int) else 0)


def _close_output() -> None:
    """Let nothing more be written to standard output: the interpreter would try once more, and say so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
