"""`gen-worker completion`: what a shell needs to complete our commands, and the answers to what it then asks."""

import os

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

from gen_worker.cli.completing import OPEN

_HELP = """Print the script that completes `gen-worker` in SHELL: bash, zsh or fish.

It completes commands, options, the functions, fields and models of the server in this folder, files after `@`, for
`kill` the requests that run and for `cache` the models on this machine.

\b
bash: eval "$(gen-worker completion bash)"    in ~/.bashrc
zsh:  eval "$(gen-worker completion zsh)"     in ~/.zshrc
fish: gen-worker completion fish | source     in ~/.config/fish/config.fish"""

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" current="${COMP_WORDS[COMP_CWORD]}" answer kind value prefix
    prefix="${line##*[[:space:]]}"  # the word so far; bash has split it at `=`, `:` and `@`, and replaces the last part
    [[ $current == *[!=:@]* ]] && prefix="${prefix%%"$current"}"
    prefix="${prefix%%@}"  # which readline counts to the part after it
    COMPREPLY=()
    for answer in $(COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null); do
        kind="${answer%%%%,*}" value="${answer#*,}"
        case $kind in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            *)
                [[ $kind == open ]] && compopt -o nospace
                printf -v value %%q "${value#"$prefix"}"
                COMPREPLY+=("$value")
                ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a plain described begun response
    local kind value help
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(COMP_WORDS="${words[1,CURRENT]}" %(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")
    for kind value help in "${response[@]}"; do
        case $kind in
            file) _path_files -f ;;
            dir) _path_files -/ ;;
            open) begun+=("$value") ;;
            *) if [[ $help == _ ]]; then plain+=("$value"); else described+=("${value//:/\\\\:}:$help"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    (( $#begun )) && compadd -U -V unsorted -S '' -a begun
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH = """\
function %(complete_func)s
    set -l answers (COMP_WORDS=(commandline -cp) %(complete_var)s=fish_complete %(prog_name)s 2>/dev/null)
    for answer in $answers
        set -l parts (string split -m 1 , -- $answer)
        switch $parts[1]
            case file
                __fish_complete_path (commandline -ct)
            case dir
                __fish_complete_directories (commandline -ct)
            case '*'
                echo $parts[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Complete(ShellComplete):
    """A shell that hands over the whole line up to the cursor, so that no word is split on the way."""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        begun = "" if not words or line[-1:].isspace() else words.pop()
        return words, begun

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        return [
            item for item in super().get_completions(args, incomplete) if item.value != incomplete or item.type != OPEN
        ]

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}"


class _Bash(_Complete):
    name = "bash"
    source_template = _BASH


class _Zsh(_Complete):
    name = "zsh"
    source_template = _ZSH

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type}\n{item.value}\n{(item.help or '_').splitlines()[0]}"


class _Fish(_Complete):
    name = "fish"
    source_template = _FISH

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value}" + (f"\t{item.help.splitlines()[0]}" if item.help else "")


_SHELLS: dict[str, type[_Complete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def answer(program: click.Command) -> None:
    """Answer the shell that this process was started by: what could come next? Ends the process."""
    for shell in _SHELLS.values():
        add_completion_class(shell)
    program.main(prog_name="gen-worker")


@click.command("completion", help=_HELP)
@click.argument("shell", metavar="SHELL", type=click.Choice(list(_SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    program = ctx.find_root().command
    click.echo(_SHELLS[shell](program, {}, "gen-worker", "_GEN_WORKER_COMPLETE").source())
