"""The command line: one file a command, assembly only; heavy imports happen inside the commands."""

from yolact_deploy.cli.app import app, main

__all__ = ["app", "main"]
