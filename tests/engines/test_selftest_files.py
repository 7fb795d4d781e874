"""The self-test beside an engine: read as the sidecar names it, and written by a build together with the engine or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines.made_selftest import assert_equal, made
from tests.export.artifacts import Artifacts
from yolact_deploy.engines import selftest as module
from yolact_deploy.engines.batches import BatchRange
from yolact_deploy.engines.builder import build_engine
from yolact_deploy.engines.options import BuildOptions
from yolact_deploy.engines.selftest import TOLERANCES, Selftest, SelftestOrder, SelftestTolerance, read_selftest, selftest_path
from yolact_deploy.engines.sidecar import EngineTarget, read_sidecar
from yolact_deploy.errors import ConfigError, ModelFileError, OutputError
from yolact_deploy.files import sha256_of


def target(**changes: Any) -> EngineTarget:
    usual = {"backend": "tensorrt-rtx", "tensorrt_version": "1", "precision": "fp32", "sha256": "0" * 64, "size": 1}
    more = {"batch": BatchRange(1, 1, 1), "capabilities": (), "gpu": "", "rebuild": "yolact-deploy build-engine m.onnx --fp16"}
    return EngineTarget(**{**usual, **more, **changes})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "a.engine"


def written(engine: Path, content: bytes | None = None) -> EngineTarget:
    path = selftest_path(engine)
    path.write_bytes(made().to_json().encode() if content is None else content)
    return target(selftest={"file": path.name, "sha256": sha256_of(path)})


COPY = "Copy all files of the engine again, or rebuild it: yolact-deploy build-engine m.onnx --fp16"


def refusal(engine: Path, what: EngineTarget | None) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read_selftest(engine, what)
    return caught.value


def test_what_the_sidecar_names_is_read(engine: Path) -> None:
    assert selftest_path(engine).name == "a.engine.selftest.json"
    assert_equal(read_selftest(engine, written(engine)), made())


def test_an_engine_without(engine: Path) -> None:
    error = refusal(engine, target())
    assert error.message == f"{engine} carries no self-test."
    assert error.mend == "Build it with: yolact-deploy build-engine m.onnx --fp16 --with-selftest"
    assert refusal(engine, None).mend == "Build it with: yolact-deploy build-engine MODEL.onnx --with-selftest"


def test_a_missing_one(engine: Path) -> None:
    what = written(engine)
    selftest_path(engine).unlink()
    error = refusal(engine, what)
    assert (error.message, error.mend) == (f"{engine} needs its self-test a.engine.selftest.json beside it, which is missing.", COPY)


def test_one_changed_byte(engine: Path) -> None:
    what, path = written(engine), selftest_path(engine)
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26"))
    error = refusal(engine, what)
    assert error.message == f"{path} is not the self-test that a.engine was built with: its SHA-256 differs."
    assert error.mend == COPY


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}"])
def test_what_the_sidecar_names_may_be_damaged(engine: Path, content: bytes) -> None:
    error = refusal(engine, written(engine, content))
    assert (error.message, error.mend) == (f"The self-test {selftest_path(engine)} is damaged.", COPY)


def test_a_file_that_is_too_large_is_not_read(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = written(engine)
    size = selftest_path(engine).stat().st_size
    monkeypatch.setattr(module, "_LARGEST_FILE", size)
    read_selftest(engine, what)
    monkeypatch.setattr(module, "_LARGEST_FILE", size - 1)
    assert "is larger than 0 MiB" in refusal(engine, what).message


def test_only_files_beside_the_engine_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    what = written(tmp_path / "a.engine")
    told = refusal(tmp_path / "in" / "a.engine", replace(what, selftest={**what.selftest, "file": "../a.engine.selftest.json"}))
    assert "which is missing" in told.message


@pytest.mark.parametrize(
    "named",
    [
        None,
        [],
        "a.json",
        {"file": "a.json"},
        {"sha256": "0" * 64},
        {"file": "a.json", "sha256": "0" * 63},
        {"file": "a.json", "sha256": 7},
        {"file": 7, "sha256": "0" * 64},
        {"file": "", "sha256": "0" * 64},
        {"file": "a.json", "sha256": "0" * 64, "more": ""},
    ],
)
def test_a_sidecar_that_names_it_wrongly(named: object) -> None:
    with pytest.raises(ModelFileError, match="does not describe an engine"):
        EngineTarget.from_dict({**target().to_dict(), "selftest": named}, "here")


def test_sidecars_with_and_without_one_are_read() -> None:
    what = target(selftest={"file": "a.json", "sha256": "0" * 64})
    assert EngineTarget.from_dict(json.loads(json.dumps(what.to_dict())), "here") == what
    old = target().to_dict()
    assert old.pop("selftest") == {}
    assert EngineTarget.from_dict(old, "here") == target()


class Maker:
    """Makes :func:`made`, and keeps what it was asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[Path, SelftestTolerance]] = []
        self.error = error

    def __call__(self, model: Path, tolerance: SelftestTolerance) -> Selftest:
        self.asked.append((model, tolerance))
        if self.error is not None:
            raise self.error
        return made(tolerance=tolerance)


rtx = pytest.mark.usefixtures("needs_rtx")


@pytest.fixture
def needs_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which builds these engines, is not installed")


@rtx
@pytest.mark.parametrize(
    ("options", "tolerance"), [({}, "fp32"), ({"precision": "fp16"}, "fp16"), ({"tf32": True}, "fp16")], ids=["fp32", "fp16", "tf32"]
)
def test_a_build_writes_it(options: dict[str, Any], tolerance: str, artifacts: Artifacts, tmp_path: Path) -> None:
    maker, output = Maker(), tmp_path / "a.engine"
    result = build_engine(artifacts.onnx(), output, BuildOptions(selftest=SelftestOrder(maker), **options))
    path = tmp_path / "a.engine.selftest.json"
    assert result.selftest_path == path
    assert maker.asked == [(artifacts.onnx(), TOLERANCES[tolerance])]
    assert result.target.selftest == {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert result.target.rebuild.endswith(" --with-selftest")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.engine", "a.engine.json", path.name]
    sidecar = read_sidecar(output)
    assert sidecar is not None
    assert_equal(read_selftest(output, sidecar[1]), made(tolerance=TOLERANCES[tolerance]))


@rtx
def test_beside_a_mask_iou_engine(artifacts: Artifacts, tmp_path: Path) -> None:
    order = SelftestOrder(Maker(), "--selftest-picture 'my street.jpg'")
    result = build_engine(artifacts.onnx(artifacts.plus), tmp_path / "p.engine", BuildOptions(selftest=order))
    names = ["p.engine", "p.engine.json", "p.engine.selftest.json", "p.maskiou.engine"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    assert result.manifest.mask_iou == {"file": names[3], "sha256": sha256_of(tmp_path / names[3])}
    assert result.target.sha256 == sha256_of(tmp_path / names[0])
    assert result.target.selftest == {"file": names[2], "sha256": sha256_of(tmp_path / names[2])}
    assert result.target.rebuild.endswith(" --selftest-picture 'my street.jpg'")


@rtx
def test_without_the_order_there_is_none(artifacts: Artifacts, tmp_path: Path) -> None:
    result = build_engine(artifacts.onnx(), tmp_path / "a.engine")
    assert (result.selftest_path, result.target.selftest) == (None, {})
    assert not (tmp_path / "a.engine.selftest.json").exists()


@rtx
def test_a_foreign_file_is_not_replaced(artifacts: Artifacts, tmp_path: Path) -> None:
    path, order = tmp_path / "a.engine.selftest.json", BuildOptions(selftest=SelftestOrder(Maker()))
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"a\.engine\.selftest\.json exists and was not written by this command"):
        build_engine(artifacts.onnx(), tmp_path / "a.engine", order)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "mine"
    build_engine(artifacts.onnx(), tmp_path / "a.engine", order, force=True)
    build_engine(artifacts.onnx(), tmp_path / "a.engine", order)  # its own it replaces
    assert path.read_text() != "mine"


@rtx
def test_what_fails_leaves_the_old_files(artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = BuildOptions(selftest=SelftestOrder(Maker()))
    build_engine(artifacts.onnx(), tmp_path / "a.engine", order)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    built: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr("yolact_deploy.engines.builder.PlanBuilder.build", lambda *_, **__: built.append(1))
        failing = BuildOptions(selftest=SelftestOrder(Maker(ConfigError("Nothing is in it."))))
        with pytest.raises(ConfigError, match="Nothing is in it"):
            build_engine(artifacts.onnx(), tmp_path / "a.engine", failing)
        assert not built, "what a self-test lacks is told before a build"
    monkeypatch.setattr("yolact_deploy.engines.builder.write_sidecar", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match="No space left"):
        build_engine(artifacts.onnx(), tmp_path / "a.engine", BuildOptions("fp16", selftest=SelftestOrder(Maker())))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before
