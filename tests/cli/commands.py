"""The command line, called in this process for its messages and in a process of its own for everything around them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from yolact_deploy.cli import app

COMMAND = Path(sys.executable).with_name("yolact-deploy")
PREFIX = "yolact-deploy: error: "


def invoke(*arguments: object) -> Result:
    """The command in this process; whatever it did not catch is raised here."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def start(*arguments: object, cwd: Path, preexec_fn: Callable[[], object] | None = None, **options: Any) -> subprocess.Popen[str]:
    """The real command, in a process of its own, without a terminal, which hears Ctrl-C even where these tests run in the background."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if preexec_fn is not None:
            preexec_fn()

    return subprocess.Popen(
        [str(COMMAND), *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        **options,
    )


def run(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """:func:`start`, then wait."""
    process = start(*arguments, cwd=cwd, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def complaint(done: Result | subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line that the failing command wrote to stderr, without its prefix."""
    found = done.exit_code if isinstance(done, Result) else done.returncode
    assert found == code, (found, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(PREFIX)
    assert "Traceback" not in done.stdout
    return lines[0].removeprefix(PREFIX)


def ok(done: Result | subprocess.CompletedProcess[str]) -> str:
    """What the command printed; it ended well and wrote nothing to stderr."""
    found = done.exit_code if isinstance(done, Result) else done.returncode
    assert found == 0, (found, done.stdout, done.stderr)
    assert done.stderr == ""
    return done.stdout
