"""Videos and cameras: reading their frames, writing overlays, and both of these overlapped with detection."""

from yolact_deploy.video.pipeline import Outcome, run_pipeline
from yolact_deploy.video.sink import CODECS, VideoSink, is_video_overlay
from yolact_deploy.video.source import VIDEO_SUFFIXES, Frame, VideoSource

__all__ = ["CODECS", "VIDEO_SUFFIXES", "Frame", "Outcome", "VideoSink", "VideoSource", "is_video_overlay", "run_pipeline"]
