"""The Typer application: the list of commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from yolact_deploy import __version__
from yolact_deploy.cli.adopt import adopt
from yolact_deploy.cli.build_engine import build_engine
from yolact_deploy.cli.calibrate import calibrate
from yolact_deploy.cli.doctor import doctor
from yolact_deploy.cli.evaluate import evaluate
from yolact_deploy.cli.export import export
from yolact_deploy.cli.inspect import inspect
from yolact_deploy.cli.make_shapes import make_shapes
from yolact_deploy.cli.predict import predict
from yolact_deploy.cli.quickstart import quickstart
from yolact_deploy.cli.sdk import sdk
from yolact_deploy.cli.selftest import selftest
from yolact_deploy.cli.train import train
from yolact_deploy.cli.triton_repository import triton_repository
from yolact_deploy.errors import YolactDeployError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Runs a command; what the package raises on purpose is printed as one line, and decides the exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except YolactDeployError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except MemoryError:
            _complain("The memory of this machine does not suffice. Use a smaller batch, or a machine with more memory.")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _complain("Interrupted. Nothing was left half-written.")
            raise typer.Exit(1) from None


def _complain(text: str) -> None:
    typer.echo(f"yolact-deploy: error: {' '.join(text.split())}", err=True)


app = typer.Typer(
    cls=_Commands,
    name="yolact-deploy",
    help="YOLACT instance segmentation: from a PyTorch checkpoint to verified ONNX, TensorRT engines and exact detections.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"yolact-deploy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


app.command()(quickstart)
app.command()(export)
app.command()(calibrate)
app.command()(build_engine)
app.command()(predict)
app.command()(evaluate)
app.command()(inspect)
app.command()(adopt)
app.command()(selftest)
app.command()(sdk)
app.command()(triton_repository)
app.command()(doctor)
app.command()(make_shapes)
app.command()(train)


def main() -> None:
    """Run the command line; the console script's entry point.

    A request to terminate ends it as Ctrl-C does, so that nothing is left half-written.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
