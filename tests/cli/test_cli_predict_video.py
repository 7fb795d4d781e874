"""``yolact-deploy predict`` with videos and cameras: the files it writes, what it says, and everything that can go wrong on the way."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.cli.commands import PREFIX, complaint, invoke, ok, run, start
from tests.cli.test_cli_interrupted import contents, no_file_above
from tests.export.artifacts import Artifacts
from tests.video.clips import FakeCapture, number_of, numbered, turn_right, write_clip
from yolact_deploy.drawing import draw_detections
from yolact_deploy.runtime import Detector, load
from yolact_deploy.video import CODECS, VideoSource, is_video_overlay

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
LOW = ("--score-threshold", "0")
HIGH = ("--score-threshold", "1")


@pytest.fixture(scope="module")
def model(artifacts: Artifacts) -> Path:
    return artifacts.onnx(batch="dynamic", opset=17)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 10, 29.97)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not {"decode", "write"} & {thread.name for thread in threading.enumerate()}


def mean_difference(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first, int) - second).mean())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_video_and_its_results(model: Path, clip: Path, tmp_path: Path) -> None:
    target, results = tmp_path / "out" / "a.mp4", tmp_path / "a.json"
    text = ok(invoke("predict", model, clip, "--save", target, "--json", results, *LOW))
    assert names(tmp_path) == {"clip.mp4", "out", "a.json"}
    assert names(tmp_path / "out") == {"a.mp4"}
    source, detector = VideoSource(clip), load(model)
    pictures = [frame.picture for frame in source]
    found = detector.predict(pictures, channels="rgb", score_threshold=0.0)
    assert json.loads(results.read_text()) == [entry for number, one in enumerate(found) for entry in one.to_coco(number)]
    written = VideoSource(target)
    overlays = [frame.picture for frame in written]
    assert len(overlays) == len(pictures) == 10
    assert written.rate == pytest.approx(source.rate, abs=0.001)
    for picture, overlay, detections in zip(pictures, overlays, found, strict=True):
        drawn = draw_detections(picture, detections)
        assert overlay.shape == picture.shape
        assert mean_difference(overlay, drawn) < 0.5 * mean_difference(overlay, picture)
    lines = text.splitlines()
    assert lines[0].startswith("Detector(yolact_nano 256px, 80 classes, onnxruntime on ")
    assert lines[0].endswith(f", {clip}")
    assert f"Saved {target} (10 frames, 160 x 120 at 29.97 a second)" in lines
    assert any(re.fullmatch(rf"Saved {results} \(\d+ detections\)", line) for line in lines)
    assert "frames a second came" not in text
    number = r"\d+\.\d"
    stages = rf"decoding {number} ms, inference {number} ms, drawing and encoding {number} ms"
    assert re.fullmatch(rf"10 frames, 1,000 detections in {number} s: {number} fps; a frame took: {stages}", lines[-2])
    assert re.fullmatch(rf"bottleneck: (inference|drawing and encoding|decoding) \({number} of {number} ms a frame\)", lines[-1])


def test_the_slowest_stage_is_the_bottleneck(model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Detector.predict

    def slow(self: Detector, pictures: Any, **options: Any) -> Any:
        time.sleep(0.2 * len(pictures))
        return predict(self, pictures, **options)

    monkeypatch.setattr(Detector, "predict", slow)
    found = re.search(
        r"inference (\S+) ms, .*\nbottleneck: inference \((\S+) of (\S+) ms a frame\)",
        ok(invoke("predict", model, clip, "--save", tmp_path, *HIGH)),
    )
    assert found is not None
    told, busy, whole = map(float, found.groups())
    assert 200 <= told == busy <= whole
    monkeypatch.setattr(Detector, "predict", predict)
    monkeypatch.setattr("yolact_deploy.drawing.draw_detections", lambda picture, _: time.sleep(0.3) or picture)
    assert "\nbottleneck: drawing and encoding (3" in ok(invoke("predict", model, clip, "--save", tmp_path, *HIGH))


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_each_kind_of_file_is_written(model: Path, clip: Path, tmp_path: Path, suffix: str) -> None:
    write_clip(tmp_path / f"probe{suffix}", 1).unlink()
    target = tmp_path / f"a{suffix}"
    ok(invoke("predict", model, clip, "--save", target, *HIGH))
    frames = list(VideoSource(target))
    assert [number_of(frame.picture) for frame in frames] == list(range(10))
    assert is_video_overlay(target)


def test_a_folder_for_the_overlay(model: Path, clip: Path, tmp_path: Path) -> None:
    ok(invoke("predict", model, clip, "--save", tmp_path / "out", *HIGH))
    assert names(tmp_path / "out") == {"clip.overlay.mp4"}
    (tmp_path / "folder.mp4").mkdir()
    ok(invoke("predict", model, clip, "--save", tmp_path / "folder.mp4", *HIGH))
    assert names(tmp_path / "folder.mp4") == {"clip.overlay.mp4"}


def test_no_overlays(model: Path, clip: Path, tmp_path: Path) -> None:
    text = ok(invoke("predict", model, clip, "--no-overlays", "--save", tmp_path / "a.mp4", "--json", tmp_path / "a.json", *HIGH))
    assert names(tmp_path) == {"clip.mp4", "a.json"}
    assert (tmp_path / "a.json").read_text() == "[]\n"
    assert ", writing " in text
    text = ok(invoke("predict", model, clip, "--no-overlays", *LOW))
    assert "10 frames, 1,000 detections" in text
    assert "Saved" not in text


def test_results_written_before_are_replaced(model: Path, clip: Path, tmp_path: Path) -> None:
    arguments = ("predict", model, clip, "--no-overlays", "--json", tmp_path / "a.json")
    ok(invoke(*arguments, *LOW))
    ok(invoke(*arguments, *HIGH))
    assert json.loads((tmp_path / "a.json").read_text()) == []
    (tmp_path / "a.json").write_text("notes")
    assert "a.json exists and was not written by this command" in complaint(invoke(*arguments))


def test_the_real_command_says_nothing_else(model: Path, clip: Path, tmp_path: Path) -> None:
    clip.with_name("cut.avi").write_bytes(write_clip(tmp_path / "a.avi", 60).read_bytes()[:-9000])
    assert ok(run("predict", model, "clip.mp4", "--save", "out.mp4", "--quiet", cwd=tmp_path)) == ""
    done = run("predict", model, "cut.avi", "--save", "cut.mov", *HIGH, cwd=tmp_path)
    found = re.search(
        r"^cut\.avi is cut off or damaged: its header says 60 frames, (\d+) could be decoded\. "
        r"Kept in cut\.mov: (\d+) frames\. Copy or download it again",
        complaint(done),
    )
    assert found is not None
    assert found[1] == found[2]
    assert len(list(VideoSource(tmp_path / "cut.mov"))) == int(found[1]) > 10
    assert "\x1b" not in done.stdout
    assert "bottleneck: " in done.stdout


def test_rotated_and_odd_sizes(model: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 4)
    turn_right(clip)
    text = ok(invoke("predict", model, clip, "--save", tmp_path / "a.mp4", "--json", tmp_path / "a.json", *LOW))
    assert "(4 frames, 120 x 160 at 25 a second)" in text
    assert next(iter(VideoSource(tmp_path / "a.mp4"))).picture.shape == (160, 120, 3)
    assert json.loads((tmp_path / "a.json").read_text())[0]["segmentation"]["size"] == [160, 120]


def test_what_somebody_else_wrote_is_not_replaced(model: Path, clip: Path, tmp_path: Path) -> None:
    target = write_clip(tmp_path / "a.mp4", 3)
    foreign = target.read_bytes()
    arguments = ("predict", model, clip, "--save", target, *HIGH)
    message = complaint(invoke(*arguments))
    assert "a.mp4 exists and was not written by this command. Choose another name, or pass --force to replace it." in message
    assert target.read_bytes() == foreign
    ok(invoke(*arguments, "--force"))
    assert len(list(VideoSource(target))) == 10
    ok(invoke(*arguments))


def test_the_video_that_is_read_is_never_replaced(model: Path, clip: Path, tmp_path: Path) -> None:
    before = clip.read_bytes()
    (tmp_path / "link.mp4").symlink_to(clip)
    for target in (clip, tmp_path / "link.mp4"):
        assert "is the video that is read" in complaint(invoke("predict", model, clip, "--save", target, "--force"))
    assert clip.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "save", "wanted"),
    [
        ("clip.mp4", "a.webm", "a.webm cannot be written: its suffix is .webm, one of .avi, .mkv, .mov, .mp4 was wanted."),
        ("clip.mp4", "/dev/null/a.mp4", "/dev/null/a.mp4 could not be written"),
        ("a.png", "a.mp4", "--save a.mp4 names a video, but SOURCE is none. Name a folder for the overlays of pictures."),
        ("folder", "a.mov", "--save a.mov names a video"),
        ("missing.mp4", "a.mp4", "The video missing.mp4 does not exist. Check the path."),
        ("empty.mov", "a.mp4", "The video empty.mov is empty (0 bytes)."),
        ("text.mkv", "a.mp4", "text.mkv is no video that OpenCV can decode"),
        ("77", "a.mp4", "camera 77 cannot be opened."),
    ],
)
def test_sources_and_outputs_that_do_not_do(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, save: str, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("empty.mov").touch()
    Path("text.mkv").write_text("hello")
    cv2.imwrite("a.png", numbered(0))
    before = contents(tmp_path)
    assert wanted in complaint(invoke("predict", model, source, "--save", save, "--quiet"))
    assert contents(tmp_path) == before


def test_a_picture_may_still_be_predicted_without_overlays(model: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), numbered(0))
    ok(invoke("predict", model, tmp_path / "a.png", "--no-overlays", "--save", tmp_path / "a.mp4"))


def test_names_that_only_look_like_a_camera_or_a_video(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.mov").mkdir()
    cv2.imwrite("set.mov/a.png", numbered(0))
    assert "1 picture, " in ok(invoke("predict", model, "set.mov", "--no-overlays", *LOW))
    Path("set.mov/a.png").rename("0")
    assert "1 picture, " in ok(invoke("predict", model, "0", "--save", "set.mov", *LOW))
    assert names(tmp_path / "set.mov") == {"0.overlay.png"}


def test_videos_in_a_folder_are_told_and_left_out(model: Path, clip: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), numbered(0))
    ok(invoke("predict", model, clip, "--save", tmp_path, *HIGH))
    assert (tmp_path / "clip.overlay.mp4").exists()
    for name in (".hidden.mp4", "other.MOV"):
        (tmp_path / name).touch()
    text = ok(invoke("predict", model, tmp_path, "--save", tmp_path / "out", *LOW))
    assert f"Left out: 2 videos in {tmp_path}; give each by itself" in text
    assert "1 picture, 100 detections" in text


def test_a_frame_that_is_broken_and_a_rate_that_is_not_known(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCapture([numbered(0), numbered(1), None, numbered(3)], FRAME_COUNT=4)
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *place: fake if place[0] == str(clip) else real(*place))
    done = invoke("predict", model, clip, "--save", tmp_path / "a.mp4", "--json", tmp_path / "a.json", *LOW)
    assert complaint(done).startswith(
        f"{clip} is damaged: 1 of its frames could not be decoded. Kept in {tmp_path / 'a.mp4'} and {tmp_path / 'a.json'}: 3 frames."
    )
    assert done.stdout.splitlines()[1] == f"{clip} does not say its frame rate: 30 a second are assumed."
    assert done.stdout.count("does not say its frame rate") == 1
    assert "3 frames, 300 detections" in done.stdout
    assert {entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())} == {0, 1, 3}
    assert fake.released
    monkeypatch.setattr(cv2, "VideoCapture", real)
    assert len(list(VideoSource(tmp_path / "a.mp4"))) == 3


def test_a_variable_rate_is_told_once(model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCapture([numbered(number) for number in range(5)], [0.2 * number for number in range(5)], FPS=25, FRAME_COUNT=5)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: fake)
    text = ok(invoke("predict", model, clip, "--no-overlays", *LOW))
    assert text.count("has a variable frame rate: 0.8 s long, 0.2 s at the 25 frames a second taken.") == 1


def test_no_frame_leaves_no_file(model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture([], FPS=25, FRAME_COUNT=5))
    done = invoke("predict", model, clip, "--save", tmp_path / "a.mp4", "--json", tmp_path / "a.json", "--quiet")
    assert "clip.mp4 holds no frame that can be decoded" in complaint(done)
    assert names(tmp_path) == {"clip.mp4"}


def interrupt_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Ctrl-C while the network computes the batch after that many."""
    predict, seen = Detector.predict, [0]

    def interrupted(self: Detector, pictures: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] > calls:
            raise KeyboardInterrupt
        return predict(self, pictures, **options)

    monkeypatch.setattr(Detector, "predict", interrupted)


def test_an_interrupted_video_keeps_its_frames(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, target = write_clip(tmp_path / "clip.mp4", 40), tmp_path / "a.mp4"
    interrupt_after(monkeypatch, 2)
    done = invoke("predict", model, clip, "--save", target, "--json", tmp_path / "a.json", *LOW)
    assert complaint(done) == "Interrupted. Nothing was left half-written."
    assert f"Interrupted. Kept in {target} and {tmp_path / 'a.json'}: 16 frames." in done.stdout.splitlines()
    assert len(list(VideoSource(target))) == 16
    assert {entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())} == set(range(16))


def test_an_interruption_before_the_first_frame_leaves_no_file(
    model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 0)
    complaint(invoke("predict", model, clip, "--save", tmp_path / "a.mp4", "--quiet"))
    assert names(tmp_path) == {"clip.mp4"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_real_command_interrupted(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    write_clip(tmp_path / "clip.mp4", 900)
    process = start("predict", model, "clip.mp4", "--save", "a.mp4", "--json", "a.json", *LOW, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size for part in tmp_path.glob(".a.*.part.mp4")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert err == f"{PREFIX}Interrupted. Nothing was left half-written.\n"
    assert process.returncode == 1
    found = re.search(r"^Interrupted\. Kept in a\.mp4 and a\.json: (\d+) frames?\.$", out, re.MULTILINE)
    assert found is not None, out
    assert len(list(VideoSource(tmp_path / "a.mp4"))) == int(found[1]) < 900
    assert {entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())} == set(range(int(found[1])))
    assert names(tmp_path) == {"clip.mp4", "a.mp4", "a.json"}


def camera(monkeypatch: pytest.MonkeyPatch, frames: int, **properties: float) -> None:
    real, fake = cv2.VideoCapture, FakeCapture([numbered(number) for number in range(frames)], **properties)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *place: fake if place == (3,) else real(*place))


def test_a_camera_ends_with_ctrl_c(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera(monkeypatch, 10_000)
    interrupt_after(monkeypatch, 3)
    text = ok(invoke("predict", model, "3", "--save", tmp_path, *HIGH))
    target = tmp_path / "camera-3.overlay.mp4"
    count = len(list(VideoSource(target)))
    assert f"Interrupted. Kept in {target}: {count} frames." in text.splitlines()
    assert "camera 3 does not say its frame rate: 30 a second are assumed." in text.splitlines()
    assert re.search(r"^\d+\.\d frames a second came; the file plays them at 30\.$", text, re.MULTILINE)
    assert "waiting for camera 3 " in text


def test_a_camera_that_is_pulled_out(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera(monkeypatch, 5, FPS=25)
    read, predict, sizes = FakeCapture.read, Detector.predict, []
    monkeypatch.setattr(FakeCapture, "read", lambda self: time.sleep(0.2) or read(self))
    monkeypatch.setattr(Detector, "predict", lambda self, found, **options: sizes.append(len(found)) or predict(self, found, **options))
    done = invoke("predict", model, "3", "--no-overlays", "--json", tmp_path / "a.json", *LOW)
    message = complaint(done)
    assert message.startswith(f"camera 3 gave no more frames after 5. Kept in {tmp_path / 'a.json'}: 5 frames.")
    assert "came; the file plays" not in done.stdout
    assert sizes[0] < 5  # no frame waits for a batch of 8


def test_an_error_while_detecting_leaves_no_file(model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detector, "predict", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        invoke("predict", model, clip, "--save", tmp_path / "a.mp4", "--json", tmp_path / "a.json")
    assert names(tmp_path) == {"clip.mp4"}


@pytest.mark.parametrize("output", ["overlay", "results"])
def test_a_full_disk(model: Path, clip: Path, tmp_path: Path, output: str) -> None:
    options = {"overlay": ("--save", "a.mp4"), "results": ("--no-overlays", "--json", "a.json")}[output]
    before = contents(tmp_path)
    done = run("predict", model, "clip.mp4", *options, "--quiet", *LOW, cwd=tmp_path, preexec_fn=no_file_above(3_000))
    assert "could not be written" in complaint(done)
    assert contents(tmp_path) == before
