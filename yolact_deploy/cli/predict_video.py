"""The part of ``yolact-deploy predict`` that takes videos and cameras."""

from __future__ import annotations

import contextlib
import json as json_module
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from yolact_deploy.cli.common import counted, stage_bar
from yolact_deploy.errors import ConfigError, OutputError, PictureError

if TYPE_CHECKING:
    from rich.console import Console

    from yolact_deploy.runtime import Detector
    from yolact_deploy.video import Outcome, VideoSink

__all__ = ["VideoRun", "hush_decoders", "refuse_video_name", "video_place", "video_target", "videos_in"]

_STAGES = {"decode": "decoding", "detect": "inference", "write": "drawing and encoding"}


def hush_decoders() -> None:
    """Keep OpenCV and FFmpeg from writing to stderr beside this command's own lines; variables that are set already stay."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def video_place(source: Path | None) -> Path | int | None:
    """`source` as a video's path or a camera's number; None where it is a picture, a folder or nothing."""
    from yolact_deploy.video import VIDEO_SUFFIXES

    if source is None or source.is_dir():
        return None
    if str(source).isascii() and str(source).isdecimal() and not source.exists():
        return int(str(source))
    return source if source.suffix.lower() in VIDEO_SUFFIXES else None


def videos_in(folder: Path) -> list[Path]:
    """The video files directly in `folder` that are not overlays of this command."""
    from yolact_deploy.video import VIDEO_SUFFIXES, is_video_overlay

    found = (path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."))
    return [path for path in found if path.is_file() and not is_video_overlay(path)]


def refuse_video_name(save: Path) -> None:
    """Raise :class:`ConfigError` where overlays of pictures would go to a folder that is named like a video."""
    from yolact_deploy.video import VIDEO_SUFFIXES

    if save.suffix.lower() in VIDEO_SUFFIXES and not save.is_dir():
        raise ConfigError(f"--save {save} names a video, but SOURCE is none.", "Name a folder for the overlays of pictures.")


def video_target(save: Path, place: Path | int) -> Path:
    """The file for the overlays: `save` itself where it ends like a video, else ``<stem>.overlay.mp4`` in that folder."""
    from yolact_deploy.video import CODECS, VIDEO_SUFFIXES

    suffix = save.suffix.lower()
    if suffix not in VIDEO_SUFFIXES or save.is_dir():
        return save / f"{f'camera-{place}' if isinstance(place, int) else place.stem}.overlay.mp4"
    if suffix not in CODECS:
        raise OutputError(f"{save} cannot be written: its suffix is {suffix}, one of {', '.join(CODECS)} was wanted.", "Name it so.")
    return save


class VideoRun:
    """A video or camera that was opened, and where its results go; everything that can be refused early is refused here."""

    def __init__(
        self, place: Path | int, save: Path | None, json: Path | None, score_threshold: float, *, force: bool, quiet: bool
    ) -> None:
        from yolact_deploy.files import refuse_overwrite
        from yolact_deploy.video import VideoSource, is_video_overlay

        self.json, self.score_threshold, self.quiet = json, score_threshold, quiet
        self.target = None if save is None else video_target(save, place)
        self.source = VideoSource(place)
        self.found = self.entries = self.told = 0
        if self.target is not None:
            if isinstance(place, Path) and self.target.exists() and self.target.samefile(place):
                raise OutputError(f"{self.target} is the video that is read.", "Choose another name for the overlays.")
            refuse_overwrite(self.target, ours=is_video_overlay(self.target), force=force)

    def go(self, detector: Detector, out: Console) -> BaseException | None:
        """Detect in all frames, keep the results, tell; what is to be raised after that."""
        self._tell_notes(out)
        try:
            outcome, size = self._run(detector)
        finally:
            self.source.close()
        if self.target is not None:
            shape = f"{counted(outcome.frames, 'frame')}, {size[0]} x {size[1]} at {self.source.rate:g} a second"
            out.print(f"Saved {self.target} ({shape})", soft_wrap=True, markup=False)
        if self.json is not None:
            out.print(f"Saved {self.json} ({counted(self.entries, 'detection')})", soft_wrap=True, markup=False)
        self._tell_notes(out)
        self._tell(outcome, out)
        if outcome.error is not None:
            return PictureError(f"{outcome.error.message} {self._kept(outcome.frames)}", outcome.error.mend)
        if outcome.interrupted:
            out.print(f"Interrupted. {self._kept(outcome.frames)}", soft_wrap=True, markup=False)
            return None if self.source.live else KeyboardInterrupt()  # a camera has no other end
        return None

    def _run(self, detector: Detector) -> tuple[Outcome, tuple[int, int]]:
        """The pipeline, and the size of the frames written."""
        from yolact_deploy.drawing import draw_detections
        from yolact_deploy.files import atomic_outputs
        from yolact_deploy.video import Frame, VideoSink, run_pipeline

        with contextlib.ExitStack() as stack:
            parts = iter(stack.enter_context(atomic_outputs(*(path for path in (self.target, self.json) if path is not None))))
            sink: VideoSink | None = None
            if self.target is not None:
                sink = stack.enter_context(VideoSink(next(parts), self.target, self.source.rate))
            results = None if self.json is None else stack.enter_context(open(next(parts), "w", encoding="utf-8"))
            show = stack.enter_context(stage_bar(quiet=self.quiet))

            def detect(pictures: list[Any]) -> list[Any]:
                return detector.predict(pictures, channels="rgb", score_threshold=self.score_threshold)

            def write(frame: Frame, detections: Any) -> None:
                if sink is not None:
                    sink.write(draw_detections(frame.picture, detections))
                if results is not None:
                    self._append(results, detections.to_coco(frame.number))
                self.found += len(detections)
                show("Detecting", frame.number + 1, self.source.total)

            outcome = run_pipeline(self.source, detect, write, group=detector.group, live=self.source.live)
            if not outcome.frames:  # nothing worth keeping
                raise outcome.error or KeyboardInterrupt
            if results is not None:
                results.write("]\n" if self.entries else "[]\n")
            if sink is not None:
                sink.finish()
            return outcome, (0, 0) if sink is None else sink.size

    def _append(self, results: IO[str], entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            results.write((",\n " if self.entries else "[") + json_module.dumps(entry))
            self.entries += 1

    def _tell_notes(self, out: Console) -> None:
        """Print what the source has to say since the last time."""
        for note in self.source.notes[self.told :]:
            out.print(note, soft_wrap=True, markup=False)
        self.told = len(self.source.notes)

    def _tell(self, outcome: Outcome, out: Console) -> None:
        frames, rate = outcome.frames, outcome.frames / outcome.seconds
        if self.source.live and self.target is not None and abs(rate / self.source.rate - 1) > 0.05:
            out.print(f"{rate:.1f} frames a second came; the file plays them at {self.source.rate:g}.", soft_wrap=True, markup=False)
        names = {**_STAGES, **({} if self.target is not None else {"write": "writing"})}
        if self.source.live:
            names["decode"] = f"waiting for {self.source.name}"
        spent = {names[stage]: 1000 * seconds / frames for stage, seconds in outcome.busy.items()}
        stages = ", ".join(f"{name} {each:.1f} ms" for name, each in spent.items())
        head = f"{counted(frames, 'frame')}, {counted(self.found, 'detection')} in {outcome.seconds:.1f} s: {rate:.1f} fps"
        slowest = max(spent, key=lambda name: spent[name])
        out.print(f"{head}; a frame took: {stages}", soft_wrap=True, markup=False)
        out.print(f"bottleneck: {slowest} ({spent[slowest]:.1f} of {1000 / rate:.1f} ms a frame)", soft_wrap=True, markup=False)

    def _kept(self, frames: int) -> str:
        """What the output holds of a run that ended early."""
        kept = " and ".join(str(path) for path in (self.target, self.json) if path is not None)
        return f"Kept in {kept}: {counted(frames, 'frame')}." if kept else f"Done until then: {counted(frames, 'frame')}."
