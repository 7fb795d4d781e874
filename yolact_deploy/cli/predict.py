"""``yolact-deploy predict``: pictures or a video in, overlays and COCO results out."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.common import ARTIFACTS, console, counted, demo_picture, demo_weights, is_terminal, need_torch
from yolact_deploy.cli.predict_video import VideoRun, hush_decoders, refuse_video_name, video_place, videos_in
from yolact_deploy.errors import PictureError

if TYPE_CHECKING:
    from rich.console import Console

    from yolact_deploy.detections import Detections
    from yolact_deploy.runtime import Detector

__all__ = ["image_id_of", "overlay_name", "predict"]

_RESULT_KEYS = {"image_id", "category_id", "bbox", "score", "segmentation"}


def predict(
    model: Annotated[
        Path | None, typer.Argument(help="An ONNX file, an engine or a checkpoint. \\[default: the demo model]", show_default=False)
    ] = None,
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A picture, a folder of pictures, a video, or a camera's number. \\[default: a drawn picture]", show_default=False
        ),
    ] = None,
    save: Annotated[
        Path, typer.Option(help="Folder for the overlays; for a video or camera also a file: .mp4, .mov, .mkv or .avi.")
    ] = ARTIFACTS / "predictions",
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Draw and save overlays.")] = True,
    json: Annotated[
        Path | None,
        typer.Option(help="Write COCO results (RLE masks) to this file; image_id of a video is the frame, from 0.", show_default=False),
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep detections that score above this.")] = 0.15,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime providers, comma-separated: cpu, cuda, … \\[default: the best]", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of a checkpoint or engine: cpu, cuda:1, …", show_default=False)] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all.")] = 0,
    variant: Annotated[str | None, typer.Option(help="For a checkpoint: its variant.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="For a checkpoint: your own variant, TOML.", show_default=False)] = None,
    classes: Annotated[str | None, typer.Option(help="For a checkpoint: class names.", show_default=False)] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run an engine without a sidecar: a plan is code.")] = False,
    lean_runtime: Annotated[
        str | None, typer.Option(help="For a version-compatible engine: its libnvinfer_lean.so.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that this command did not write.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Detect instances in a picture, a folder of pictures, a video or a camera; save overlays, and COCO results where asked for.

    Ctrl-C ends a video or camera cleanly: the frames done so far are kept.
    """
    hush_decoders()  # before OpenCV is imported
    from yolact_deploy.runtime import load

    out = console(quiet=quiet)
    place = video_place(source)
    if place is None and overlays:
        refuse_video_name(save)
    if json is not None:
        _check_results_file(json, force=force)
    if model is None:
        need_torch("The demo model")
        model = demo_weights()
        out.print(f"No model was named: taking the demo model {model}", soft_wrap=True, markup=False)
    folder = save if overlays else None
    video = None if place is None else VideoRun(place, folder, json, score_threshold, force=force, quiet=quiet)
    pictures = _pictures(source, out) if video is None else []
    chosen = None if providers is None else [name.strip() for name in providers.split(",") if name.strip()]
    detector = load(
        model,
        device=device,
        providers=chosen,
        threads=threads,
        variant=variant,
        config=config,
        classes=classes,
        trust=trust,
        lean_runtime=lean_runtime,
    )
    what = counted(len(pictures), "picture") if video is None else video.source.name
    out.print(f"{detector!r}, {what}", soft_wrap=True, markup=False)
    if video is not None:
        ended = video.go(detector, out)
    else:
        run = _Run(detector, score_threshold, folder, force=force, tolerant=source is not None and source.is_dir())
        ended = _all_pictures(run, pictures, json, out, quiet=quiet)
    if reason := detector.backend.host_reason((), detector.settings):
        out.print(f"NMS and masks were made on the CPU: {reason}", soft_wrap=True, markup=False)
    if ended is not None:
        raise ended


def _all_pictures(run: _Run, pictures: list[Path | None], json: Path | None, out: Console, *, quiet: bool) -> PictureError | None:
    """Detect in all pictures and tell; what is to be raised after that."""
    for path in _progress(pictures, quiet=quiet):
        run.one(path)
    if json is not None:
        _write_results(json, run.results)
        out.print(f"Saved {json} ({counted(len(run.results), 'detection')})", soft_wrap=True, markup=False)
    if run.save is not None and run.done:
        out.print(f"Saved {counted(run.done, 'overlay')} in {run.save}", soft_wrap=True, markup=False)
    out.print(run.summary(), soft_wrap=True)
    if not run.skipped:
        return None
    return PictureError(f"{run.skipped} of {len(pictures)} pictures could not be read and were skipped.", "See the lines above.")


class _Run:
    """The pictures done so far."""

    def __init__(self, detector: Detector, score_threshold: float, save: Path | None, *, force: bool, tolerant: bool) -> None:
        self.detector, self.score_threshold, self.save = detector, score_threshold, save
        self.force, self.tolerant = force, tolerant
        self.results: list[dict[str, Any]] = []
        self.names: set[str] = set()
        self.ids: set[int | str] = set()
        self.done = self.skipped = self.found = 0
        self.spent: dict[str, float] = {}

    def one(self, path: Path | None) -> None:
        """Detect in one picture (None: the drawn one); a broken one of a folder is told, counted and skipped."""
        from yolact_deploy.pictures import read_picture

        try:
            picture = demo_picture() if path is None else read_picture(path)
        except PictureError as error:
            if not self.tolerant:
                raise
            self.skipped += 1
            typer.echo(f"yolact-deploy: skipped: {error}", err=True)
            return
        detections = self.detector.predict(picture, channels="rgb", score_threshold=self.score_threshold)
        name = path or Path("drawn.png")
        if self.save is not None:
            self._overlay(name, picture, detections)
        self.results += detections.to_coco(self._free_id(name))
        self.done += 1
        self.found += len(detections)
        for stage, spent in detections.milliseconds.items():
            self.spent[stage] = self.spent.get(stage, 0.0) + spent

    def _overlay(self, name: Path, picture: Any, detections: Detections) -> None:
        from yolact_deploy.drawing import draw_detections, is_overlay, save_picture
        from yolact_deploy.files import refuse_overwrite

        if self.save is None:
            return
        own = overlay_name(name, picture.shape)
        target = self.save / (own if own not in self.names else f"{name.name}.overlay.png")
        self.names.add(target.name)
        refuse_overwrite(target, ours=is_overlay(target), force=self.force)
        save_picture(target, draw_detections(picture, detections))

    def _free_id(self, name: Path) -> int | str:
        """The picture's id; the file's name where another picture (1.jpg, 1.png) has that id already."""
        wanted = image_id_of(name)
        found = wanted if wanted not in self.ids else name.name
        self.ids.add(found)
        return found

    def summary(self) -> str:
        """One line: pictures, detections, milliseconds of each stage a picture."""
        if not self.done:
            return "0 pictures done"
        stages = ", ".join(f"{stage} {spent / self.done:.1f} ms" for stage, spent in self.spent.items())
        return f"{counted(self.done, 'picture')}, {counted(self.found, 'detection')}; a picture took: {stages}"


def overlay_name(picture: Path, shape: tuple[int, ...] = (1, 1)) -> str:
    """``a.jpg`` -> ``a.overlay.jpg``; what is no JPEG or PNG, or too large for JPEG, keeps its suffix in the name and becomes PNG."""
    from yolact_deploy.drawing import JPEG_LIMIT

    suffix = picture.suffix.lower()
    if suffix == ".png" or (suffix in (".jpg", ".jpeg") and max(shape) <= JPEG_LIMIT):
        return f"{picture.stem}.overlay{suffix}"
    return f"{picture.name}.overlay.png"


def image_id_of(picture: Path) -> int | str:
    """COCO's numeric id where the file's name is one (``000000000139.jpg`` -> 139), else the file's name."""
    return int(picture.stem) if picture.stem.isascii() and picture.stem.isdecimal() else picture.name


def _pictures(source: Path | None, out: Console) -> list[Path | None]:
    from yolact_deploy.drawing import is_overlay
    from yolact_deploy.pictures import list_pictures

    if source is None:
        return [None]
    if not source.is_dir():
        return [source]
    found: list[Path | None] = [path for path in list_pictures(source) if not (".overlay." in path.name and is_overlay(path))]
    if videos := videos_in(source):
        out.print(f"Left out: {counted(len(videos), 'video')} in {source}; give each by itself", soft_wrap=True, markup=False)
    return found


def _progress(pictures: list[Path | None], *, quiet: bool) -> Iterator[Path | None]:
    from rich.progress import track

    hidden = quiet or len(pictures) < 2 or not is_terminal()
    return iter(track(pictures, "Detecting", console=console(stderr=True), disable=hidden))


def _check_results_file(path: Path, *, force: bool) -> None:
    from yolact_deploy.files import refuse_overwrite

    refuse_overwrite(path, ours=_holds_results(path), force=force)


def _holds_results(path: Path) -> bool:
    """Whether the file is a list of COCO results, as this command writes them."""
    try:
        entries = json_module.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(entries, list) and all(isinstance(entry, dict) and set(entry) == _RESULT_KEYS for entry in entries)


def _write_results(path: Path, results: list[dict[str, Any]]) -> None:
    from yolact_deploy.files import write_text

    write_text(path, "[" + ",\n ".join(json_module.dumps(entry) for entry in results) + "]\n")
