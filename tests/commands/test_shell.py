"""The executable, its help and its completion."""

import os
import shutil
import subprocess
import sys

import click
import pytest
from command_line import RIALTO, open_terminal, run
from process import ROOT

from service.__main__ import main
from service.commands import COMMANDS, HIDDEN

LAUNCHER = ROOT / "scripts" / "rialto"


@pytest.fixture
def checkout(tmp_path):
    """A checkout with an environment, whose Python shows what it was called with."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(LAUNCHER, root / "scripts")
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    (root / ".venv" / "bin" / "rialto").symlink_to("../../scripts/rialto")
    return root


def shown_by(program, directory, path="/usr/bin:/bin"):
    """What a program shows that is called with an argument of two words."""
    return subprocess.run(
        [program, "keys", "a b"],
        cwd=directory,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout


def test_the_executable_runs_from_anywhere(checkout, tmp_path):
    """.venv/bin/rialto runs the service of its checkout with its Python, from any directory and
    through links of any kind."""
    expected = f"{checkout} -m service keys a b\n"
    program = checkout / ".venv" / "bin" / "rialto"
    assert shown_by(program, tmp_path) == expected
    assert shown_by(".venv/bin/rialto", checkout) == expected
    assert shown_by(checkout / "scripts" / "rialto", "/") == expected

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rialto").symlink_to(program)
    (tmp_path / "again").symlink_to(tmp_path / "bin" / "rialto")
    assert shown_by(tmp_path / "again", "/") == expected
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    found = subprocess.run(
        ["sh", "-c", "rialto keys 'a b'"],
        cwd="/",
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert found.stdout == expected


def test_an_environment_that_is_shared(checkout, tmp_path):
    """Two checkouts that share an environment by a link each run their own service."""
    other = tmp_path / "other"
    (other / "scripts").mkdir(parents=True)
    shutil.copy(LAUNCHER, other / "scripts")
    (other / ".venv").symlink_to(checkout / ".venv")

    assert shown_by(other / ".venv" / "bin" / "rialto", "/") == f"{other} -m service keys a b\n"


async def test_the_help_is_the_commands(tmp_path):
    """The help lists every command under its heading, with the first sentence of its own help."""
    status, out, _ = await run(*RIALTO, "--help", directory=tmp_path)
    assert status == 0
    assert "Usage: rialto " in out
    assert "python -m service" not in out
    text = " ".join(out.split())
    for name, listed in COMMANDS.items():
        if name in HIDDEN:
            assert f" {name} " not in out
            continue
        command = main.get_command(click.Context(main), name)
        own = " ".join(command.help.partition("\n\n")[0].split())
        assert f" {name} {listed.help}" in text
        assert own.startswith(listed.help.removesuffix(".")), name


def test_every_command_has_a_description():
    """Every command and option has help, and commands with results can print JSON."""
    lacking = []

    def look(command, path):
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                if name not in HIDDEN:
                    look(command.get_command(context, name), (*path, name))
        if not command.help:
            lacking.append(path)

    look(main, ())
    assert lacking == []


def test_one_word_for_one_thing():
    """The verbs of all groups are those of one list, so that a command can be guessed."""
    verbs = set()
    for name in ("organizations", "keys", "limits", "models", "upstream-keys", "ledger"):
        verbs |= set(main.get_command(click.Context(main), name).commands)

    assert verbs == {
        *("create", "list", "show", "update", "delete", "rotate", "revoke"),
        *("suspend", "resume"),
        *("set", "deprecated"),
        *("add", "check", "disable", "enable"),
        *("export", "credit", "retain", "rebuild-usage"),
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_a_completion_script(tmp_path, shell):
    """The script of each shell registers the completion of rialto, and is valid where the shell
    is there to check it."""
    status, out, _ = await run(*RIALTO, "completion", shell, directory=tmp_path)
    assert status == 0
    assert "_RIALTO_COMPLETE" in out

    if shutil.which(shell):
        (tmp_path / "script").write_text(out)
        assert (await run(shell, "-n", "script", directory=tmp_path))[0] == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash completes")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rialto lim", {"limits"}),
        ("rialto keys ", {"create", "list", "show", "update", "rotate", "revoke"}),
        ("rialto usage --group-by out", {"outcome"}),
        ("rialto keys create --na", {"--name"}),
    ],
)
async def test_bash_completes(tmp_path, line, expected):
    """After the script is sourced, bash completes commands, options and choices."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    program = bin_directory / "rialto"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m service "$@"\n')
    program.chmod(0o755)
    words = line.split(" ")
    script = f"""
        source <(rialto completion bash)
        COMP_WORDS=({" ".join(word or "''" for word in words)})
        COMP_CWORD={len(words) - 1}
        _rialto_completion rialto
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{bin_directory}:{os.environ['PATH']}"
    status, out, err = await run("bash", "-c", script, directory=tmp_path, PATH=path)

    assert (status, err) == (0, "")
    assert set(out.split()) == expected


IMPORTED = """
import sys
import service.__main__, service.app, service.commands.serving, service.process.processes
print(sorted({"rich", "markdown_it", "pygments"} & set(sys.modules)))
"""


async def test_serving_imports_no_tables(tmp_path):
    """A serving process and the parent of several do not load what only commands need."""
    status, out, err = await run(sys.executable, "-c", IMPORTED, directory=tmp_path)

    assert (status, out) == (0, "[]\n"), err


async def test_the_list_of_commands_imports_none(tmp_path):
    """The help and the completion of names are quick, since no command is imported for them."""
    program = (
        "import sys; sys.argv = ['rialto', '--help']\n"
        "import atexit; atexit.register(lambda: print('asyncpg' in sys.modules))\n"
        "from service.__main__ import run; run()\n"
    )
    status, out, err = await run(sys.executable, "-c", program, directory=tmp_path)

    assert (status, out.splitlines()[-1]) == (0, "False"), err


async def test_an_interrupted_tail(command):
    """Ctrl-C ends requests tail without an error."""
    terminal = await open_terminal(*RIALTO, "requests", "tail", **command)
    await terminal.shows("Ctrl-C stops.")
    terminal.type("\x03")
    shown = await terminal.ended()

    assert shown.status == 0
    assert "Traceback" not in shown.text


def test_a_service_of_another_project_is_not_run(tmp_path):
    """The command runs the code of its own checkout in a directory that has a ``service`` too."""
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__main__.py").write_text("print('not this one')")
    ran = subprocess.run(
        [LAUNCHER, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("rialto")
