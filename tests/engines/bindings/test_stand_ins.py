from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.engines.bindings import run
from tests.engines.bindings.run import RTX, VERSIONS, ChildError, run_in
from tests.engines.bindings.signatures import REQUIRED, Parameter, Signature, parse, split

PROBES = "tests.engines.bindings.probes"
HERE = Path(__file__).parent

versions = pytest.mark.parametrize("version", VERSIONS)
modern = pytest.mark.parametrize("version", [version for version in VERSIONS if version != "8.6.1"])


@versions
def test_the_bindings_import_and_say_their_version(version: str) -> None:
    standing, real, file, libraries = run_in(version, f"{PROBES}:version")
    assert standing == real == VERSIONS[version]
    assert Path(file).is_relative_to(run.BINDINGS / version)
    assert "halted" in libraries  # installed or not, real libraries are not looked for


@versions
def test_requirements_pin_the_version_and_its_hashes(version: str) -> None:
    text = (HERE / f"requirements-{version}.txt").read_text()
    assert f"=={VERSIONS[version]} ;" in text
    assert len(set(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text))) == {"8.6.1": 2, "10.3": 3, "10.16": 4, "11.4": 5}[version]


def test_there_are_requirements_for_these_versions_only() -> None:
    assert {path.stem.removeprefix("requirements-") for path in HERE.glob("requirements-*.txt")} == set(VERSIONS)


@versions
def test_unknown_names_are_refused_with_class_name_and_version(version: str) -> None:
    said = run_in(version, f"{PROBES}:unknown_names")
    assert said.pop("what all objects have") == "fine"
    assert said.pop("constructor").startswith("AttributeError: ")  # the real class says it
    refused = f"AttributeError: IBuilderConfig of tensorrt {VERSIONS[version]} has no attribute 'workspace'"
    for way in ("read", "assign", "configure", "values"):
        assert said.pop(way) == refused, way
    assert said.pop("delete") == f"AttributeError: IBuilderConfig of tensorrt {VERSIONS[version]}: 'flags' cannot be deleted"
    assert said.pop("module") == f"AttributeError: tensorrt {VERSIONS[version]} has no 'Bilder'"
    assert said.pop("configure class") == f"AttributeError: tensorrt {VERSIONS[version]} has no class IBilderConfig"
    assert not said


@versions
def test_calls_and_assignments_are_taken_or_refused(version: str) -> None:
    said = run_in(version, f"{PROBES}:outcomes")
    assert len(said) > 40
    for name, outcome in said.items():
        if name.startswith("wrong"):
            assert outcome.startswith(("TypeError: ", "AttributeError: ")), (name, outcome)
        else:
            assert outcome == "fine", name
    assert VERSIONS[version] in said["wrong enumeration"]
    assert "flag: a MemoryPoolType is no BuilderFlag" in said["wrong enumeration"]
    assert "pool_size is missing" in said["wrong keyword"]
    assert "no parameter is named size" in said["wrong: one keyword more"]
    assert "pool is given twice" in said["wrong: twice"]
    assert "pool_size: 1.5 is no " in said["wrong: float"]


def test_stand_ins_take_and_refuse_what_real_objects_do() -> None:
    said = run_in(RTX, f"{PROBES}:outcomes_of_rtx")
    assert len(said) > 40
    kinds = {name: [outcome.partition(":")[0] for outcome in pair] for name, pair in said.items()}
    assert {name: pair for name, pair in kinds.items() if (pair[0] == "fine") != (pair[1] == "fine")} == {}
    assert {name for name, pair in kinds.items() if pair[0] != "fine"} == {name for name in kinds if name.startswith("wrong")}


@versions
def test_what_pybind11_would_turn_into_a_number_or_bool_is_refused(version: str) -> None:
    said = run_in(version, f"{PROBES}:stricter")
    assert [line.partition(":")[0] for line in said] == ["TypeError"] * 3


GONE = ("BuilderFlag.FP16", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "ILayer.precision", "ICudaEngine.device_memory_size")
ALWAYS = ("Builder.build_serialized_network", "BuilderFlag.TF32", "ICudaEngine.num_io_tensors", "IExecutionContext.execute_async_v3")


@pytest.mark.parametrize(("version", "there"), [("8.6.1", True), ("10.3", True), ("10.16", True), ("11.4", False)])
def test_names_that_11_removed(version: str, there: bool) -> None:
    names = [*GONE, *ALWAYS, "ILayer.no_such_name"]
    expected = {**dict.fromkeys(GONE, there), **dict.fromkeys(ALWAYS, True), "ILayer.no_such_name": False}
    assert run_in(version, f"{PROBES}:present", names) == expected


@pytest.mark.parametrize(("version", "there"), [("8.6.1", False), ("10.3", True), ("10.16", True), ("11.4", True)])
def test_progress_monitors_came_with_10(version: str, there: bool) -> None:
    names = ["IProgressMonitor", "IBuilderConfig.progress_monitor"]
    assert run_in(version, f"{PROBES}:present", names) == dict.fromkeys(names, there)


def test_a_missing_class_is_refused() -> None:
    with pytest.raises(ChildError, match=r"tensorrt 8\.6\.1 has no 'IProgressMonitor'"):
        run_in("8.6.1", f"{PROBES}:monitors", "")


@versions
def test_a_right_flow_passes_and_stands_in_the_journal(version: str) -> None:
    names, shape, level, executed, noted, executions = run_in(version, f"{PROBES}:right_flow")
    assert (names, shape, level, executed, executions) == (["image", "boxes"], [1, 3, 8, 8], 4, False, 1)
    assert noted == [
        ["call", "Builder", {"logger": "<Messages>"}],
        ["call", "Builder.create_network", {"flags": 2 if version.startswith("10") else 1}],
        ["call", "OnnxParser", {"network": "<INetworkDefinition>", "logger": "<Messages>"}],
        ["call", "OnnxParser.parse", {"model": "5 bytes"}],
        ["call", "Builder.create_builder_config", {}],
        ["call", "IBuilderConfig.set_memory_pool_limit", {"pool": "MemoryPoolType.WORKSPACE", "pool_size": 1 << 30}],
        ["set", "IBuilderConfig.builder_optimization_level", {"value": 4}],
        ["call", "Runtime", {"logger": "<Messages>"}],
        ["call", "Builder.build_serialized_network", {"network": "<INetworkDefinition>", "config": "<IBuilderConfig>"}],
        ["call", "Runtime.deserialize_cuda_engine", {"serialized_engine": "9 bytes"}],
        ["call", "ICudaEngine.get_tensor_name", {"index": 0}],
        ["call", "ICudaEngine.get_tensor_name", {"index": 1}],
        ["call", "ICudaEngine.get_tensor_shape", {"name": "image"}],
        ["call", "ICudaEngine.create_execution_context", {}],
    ]


@versions
def test_values_and_memory_of_one_object(version: str) -> None:
    memory, number, name, shape, assigned, raised, unmade, elsewhere, (refused, last) = run_in(version, f"{PROBES}:own_values")
    assert memory == ["abc", 3, 3, ""]
    assert (number, name, shape, assigned) == ([3, 5], ["tensor 4", ""], [2, 2], [9, 6])
    assert raised == unmade == "RuntimeError: no memory"
    assert elsewhere == ["a layer", False]
    assert refused.startswith("TypeError: init_libnvinfer_plugins(None) does not fit")
    assert last == ["call", "init_libnvinfer_plugins", {"logger": None, "namespace": ""}]


@versions
def test_values_that_the_real_methods_could_not_return_are_refused(version: str) -> None:
    number, shape, arguments = run_in(version, f"{PROBES}:wrong_configurations")
    assert "was configured wrongly: 'two' is no int" in number
    assert "was configured wrongly: 'shape' is no Dims" in shape
    assert arguments.startswith("TypeError: ")


@versions
def test_loggers_are_checked(version: str) -> None:
    assert "too many positional arguments" in run_in(version, f"{PROBES}:subclasses", "few")
    assert "Misnamed has no log of its own" in run_in(version, f"{PROBES}:subclasses", "misnamed")
    assert run_in(version, f"{PROBES}:subclasses", "own") == "fine"
    assert "logger: a object is no ILogger" in run_in(version, f"{PROBES}:subclasses", "none")


@modern
def test_progress_monitors_are_checked(version: str) -> None:
    assert "Unfinished has no phase_finish of its own" in run_in(version, f"{PROBES}:monitors", "unfinished")
    seen = [["Build", 1], ["Build", None, 2]]
    assert run_in(version, f"{PROBES}:monitors", "right") == ["fine", seen]
    said, _ = run_in(version, f"{PROBES}:monitors", "says nothing")
    assert "Monitor.step_complete returned what" in said
    assert "None is no bool" in said


@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_every_signature_is_understood(version: str) -> None:
    count, missing, unknown = run_in(version, f"{PROBES}:unread")
    assert count > 800
    assert missing == []
    assert unknown == [], "teach type_checks.py these types"


def test_a_failure_shows_its_traceback_and_warnings_are_failures() -> None:
    with pytest.raises(ChildError, match=r"probes\.py\".*in warns\n(.*\n)+UserWarning: a warning") as raised:
        run_in("11.4", f"{PROBES}:warns")
    assert (raised.value.kind, raised.value.message) == ("UserWarning", "a warning")


def test_what_is_missing_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "BINDINGS", tmp_path)
    with pytest.raises(pytest.skip.Exception, match=r"bindings of TensorRT 11\.4 are not installed"):
        run_in("11.4", f"{PROBES}:version")
    (tmp_path / "11.4" / "tensorrt_bindings").mkdir(parents=True)
    monkeypatch.setattr(run.stub_libraries, "compiler", lambda: None)
    with pytest.raises(pytest.skip.Exception, match="no C compiler"):
        run_in("11.4", f"{PROBES}:version")


def test_signatures_are_parsed() -> None:
    one = parse("f(self: m.X, a: int = 0, *, b: List[Tuple[int, str]] = <E.A: 0>, **rest) -> Dict[str, int]\n\ntext", "f")
    expected = (
        Parameter("a", "int", "0"),
        Parameter("b", "List[Tuple[int, str]]", "<E.A: 0>", "*"),
        Parameter("rest", "", REQUIRED, "**kwargs"),
    )
    assert one == (Signature("f", expected, "Dict[str, int]"),)
    assert str(one[0]) == "f(a: int = 0, b: List[Tuple[int, str]] = <E.A: 0>, **rest) -> Dict[str, int]"
    two = parse("f(*args, **kwargs)\nOverloaded function.\n\n1. f(self: X, a: str = ',)') -> None\n\ntext\n\n2. f(self: X) -> int\n", "f")
    assert [(signature.parameters, signature.returns) for signature in two] == [((Parameter("a", "str", "',)'"),), "None"), ((), "int")]
    assert parse("Initialize self.", "__init__") == parse(None, "f") == ()
    assert parse("(arg0: X, arg1: std::vector<int, long>) -> None") == (
        Signature("", (Parameter("arg1", "std::vector<int, long>"),), "None"),
    )
    assert split("a, (b, c), '[,', d->e, f<g, h>") == ["a", "(b, c)", "'[,'", "d->e", "f<g, h>"]
