"""Completion for the shell: ``tarspyro completion bash | zsh | fish``."""

__all__ = ["SHELLS", "completion"]

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")

# Bash and zsh share the script: zsh reads it by its own bashcompinit.
_BASH = """\
{zsh}_tarspyro() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; fi
    if [ "$COMP_CWORD" -eq 2 ]; then
        case "${{COMP_WORDS[1]}}" in
{seconds}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [ ${{#COMPREPLY[@]}} -eq 0 ]; then COMPREPLY=($(compgen -f -- "$current")); fi
}}
complete -o filenames -F _tarspyro tarspyro
"""


def completion(shell: str, tree: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Returns a script that completes commands, methods and options.

    Arguments:
        shell: ``"bash"``, ``"zsh"`` or ``"fish"``.
        tree: The options by command and by what follows it; a command that nothing follows has
            the empty word.
    """
    return _fish(tree) if shell == "fish" else _bash(shell, tree)


def _bash(shell: str, tree: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    cases = []
    seconds = []
    for command, followers in tree.items():
        for follower, options in followers.items():
            pattern = f'"{command} {follower}"' if follower else f'"{command} "*'
            cases.append(f'        {pattern}) words="{" ".join(options)}" ;;')
        names = " ".join(followers)
        if names:
            seconds.append(f'            {command}) words="{names}" ;;')
    return _BASH.format(
        zsh="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        cases="\n".join(cases),
        commands=" ".join(tree),
        seconds="\n".join(seconds),
    )


def _fish(tree: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    first = " ".join(tree)
    lines = [f"complete -c tarspyro -n __fish_use_subcommand -f -a '{first}'"]
    for command, followers in tree.items():
        seen = f"__fish_seen_subcommand_from {command}"
        names = " ".join(followers)
        if names.strip():
            lines.append(
                f"complete -c tarspyro -n '{seen}; and not __fish_seen_subcommand_from {names}'"
                f" -f -a '{names}'"
            )
        for follower, options in followers.items():
            where = f"{seen}; and __fish_seen_subcommand_from {follower}" if follower else seen
            lines += [
                f"complete -c tarspyro -n '{where}' -l {option.removeprefix('--')}"
                for option in options
            ]
    return "\n".join(lines) + "\n"
