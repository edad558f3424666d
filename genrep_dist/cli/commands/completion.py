"""`genrep completion`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from genrep_dist.cli.terminal import write_line

_BASH = """\
_genrep_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _GENREP_COMPLETE=complete_bash genrep 2>/dev/null))
}
complete -o default -F _genrep_completion genrep
"""
_ZSH = """\
#compdef genrep
_genrep_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _GENREP_COMPLETE=complete_zsh genrep 2>/dev/null)
}
compdef _genrep_completion genrep
"""
_FISH = """\
complete --command genrep --no-files --arguments "(env _GENREP_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
_TYPER_COMPLETE_ARGS=(commandline -cp) genrep 2>/dev/null)" --condition "env _GENREP_COMPLETE=complete_fish \
_TYPER_COMPLETE_FISH_ACTION=is-args _TYPER_COMPLETE_ARGS=(commandline -cp) genrep 2>/dev/null"
"""


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print the script that lets a shell complete commands, options and names.

    bash: add `source <(genrep completion bash)` to ~/.bashrc. zsh: the same line with zsh in ~/.zshrc, after compinit. fish: write the
    output to ~/.config/fish/completions/genrep.fish.
    """
    write_line({Shell.BASH: _BASH, Shell.ZSH: _ZSH, Shell.FISH: _FISH}[shell].rstrip())
