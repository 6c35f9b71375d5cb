"""``rialto completion``."""

from typing import Final

import click
from click.shell_completion import get_completion_class

PROGRAM: Final = "rialto"
VARIABLE: Final = "_RIALTO_COMPLETE"
"""By this variable click knows that the shell asks for completions."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  source <(rialto completion bash)
    zsh:   source <(rialto completion zsh)
    fish:  rialto completion fish | source

    Put the line into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has one for each of the choices
    click.echo(kind(context.find_root().command, {}, PROGRAM, VARIABLE).source())
