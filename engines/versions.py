"""TensorRT 8.6, 10.x, 11.x and TensorRT-RTX: everything that differs between them, so that no other module asks for a version."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from yolact_deploy.errors import ConfigError, DeviceError, MissingDependencyError, ModelFileError

from .gpu import driver_cuda_version, gpus
from .targets import TITLES, BackendName, Capability, capability_text

__all__ = ["PIP", "HardwareLevel", "TensorRT", "check_driver", "is_installed", "load_tensorrt"]

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
PIP: dict[str, str] = {name: f'pip install "yolact-deploy[{extra}]"' for name, extra in _EXTRAS.items()}
"""The command that installs each backend."""

HardwareLevel = Literal["none", "ampere+", "same-compute-capability"]
_LEVELS = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_OLDEST = {"tensorrt": (8, 6), "tensorrt-rtx": (1, 4)}
_COMPATIBLE_MAJORS = {(8, 9), (8, 10), (9, 10), (10, 11)}  # built by, read by
_WEAKLY_TYPED_OPSET, _STRONGLY_TYPED_OPSET = 17, 20
_DRIVER_FOR_CUDA = {11: "450", 12: "525", 13: "580"}  # oldest driver of each CUDA by its release notes


@dataclass(frozen=True)
class TensorRT:
    """One installed TensorRT.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        module: the imported Python module.
        version: as it tells it, ``10.16.1.11``.
    """

    backend: BackendName
    module: Any
    version: str

    def __str__(self) -> str:
        return f"{TITLES[self.backend]} {self.version}"

    @property
    def number(self) -> tuple[int, ...]:
        """The version's leading numbers; none in a version that begins with something else, which is older than any other then."""
        leading = re.match(r"\d+(?:\.\d+)*", self.version)
        return tuple(int(part) for part in leading[0].split(".")) if leading else ()

    @property
    def is_rtx(self) -> bool:
        return self.backend == "tensorrt-rtx"

    @property
    def weakly_typed(self) -> bool:
        """TensorRT 8 chooses each layer's precision itself unless it is pinned; from 10 on the graph's types are what runs."""
        return not self.is_rtx and self.number < (10,)

    @property
    def newest_opset(self) -> int:
        """That its ONNX parser reads."""
        return _WEAKLY_TYPED_OPSET if self.weakly_typed else _STRONGLY_TYPED_OPSET

    @property
    def has_progress_monitor(self) -> bool:
        """Without one a build tells nothing and cannot be cancelled."""
        return hasattr(self.module, "IProgressMonitor")

    @property
    def keeps_timings(self) -> bool:
        """Whether a timing cache shortens a later build; TensorRT-RTX measures nothing while it builds."""
        return not self.is_rtx

    def network_flags(self) -> int:
        """For ``Builder.create_network``: explicit batch on 8, strong typing on 10; 11 and RTX know nothing else."""
        flags = self.module.NetworkDefinitionCreationFlag
        if self.weakly_typed:
            return 1 << int(flags.EXPLICIT_BATCH)
        return 1 << int(flags.STRONGLY_TYPED)

    def set_typing(self, config: Any, *, float16: bool, int8: bool) -> None:
        """On TensorRT 8 allow what the graph holds and insist on pinned layers; elsewhere the graph alone decides.

        Also brings TensorRT 8's profiles to what later versions have, and lets TensorRT-RTX's engines be captured into CUDA graphs.
        """
        flags = self.module.BuilderFlag
        if self.is_rtx and hasattr(flags, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)
        if not self.weakly_typed:
            return
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        if float16:
            config.set_flag(flags.FP16)
        if int8:
            config.set_flag(flags.INT8)
        # Contexts of one engine share its one optimization profile, which is a matter of course from 10 on.
        config.set_preview_feature(self.module.PreviewFeature.PROFILE_SHARING_0806, True)

    def set_capabilities(self, config: Any, capabilities: Sequence[Capability]) -> None:
        """Build for these compute capabilities (none: portable). Raises :class:`ConfigError` naming one that cannot be."""
        self.check_capabilities(capabilities)
        if not self.is_rtx or not capabilities:
            return
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            if not config.set_compute_capability(getattr(self.module.ComputeCapability, _member(capability)), index):
                raise ConfigError(f"{self} refuses to build for compute capability {capability_text(capability)}.", "Change --sm.")

    def check_capabilities(self, capabilities: Sequence[Capability]) -> None:
        """Raise :class:`ConfigError` where this TensorRT cannot build for one of `capabilities`."""
        if self.is_rtx:
            known = self.capabilities()
            unknown = [capability_text(one, examples=True) for one in capabilities if one not in known]
            if unknown:
                mend = "Build for these on their own machine with --backend tensorrt, or change --sm."
                supported = ", ".join(map(capability_text, known))
                raise ConfigError(f"{self} builds for compute capability {supported}; not for {', '.join(unknown)}.", mend)
            return
        here = gpus()
        if capabilities and (not here or tuple(capabilities) != (here[0].compute_capability,)):
            asked, found = ", ".join(map(capability_text, capabilities)), str(here[0]) if here else "no GPU"
            raise ConfigError(
                f"TensorRT builds for the GPU that it runs on ({found}); compute capability {asked} was asked for.",
                "Drop --sm, build on a machine with that GPU, or use --backend tensorrt-rtx.",
            )

    def capabilities(self) -> list[Capability]:
        """Compute capabilities that TensorRT-RTX can be asked for, smallest first; empty for TensorRT."""
        if not self.is_rtx:
            return []
        names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(self.module.ComputeCapability))
        return sorted((int(match[1]), int(match[2])) for match in names if match)

    def set_hardware_level(self, config: Any, level: HardwareLevel) -> None:
        """Let the engine run on more GPUs than the one it is built on; :class:`ConfigError` where this version cannot."""
        if level == "none":
            return
        if self.is_rtx:
            raise ConfigError(
                f"{self} has no hardware-compatible builds: its engines move between GPUs of the capabilities that they are built for.",
                "Drop --hardware-compatible and name the capabilities: --sm 86,89 (none: 8.0 and newer).",
            )
        member = getattr(self.module.HardwareCompatibilityLevel, _LEVELS[level], None)
        if member is None:
            raise ConfigError(f"{self} does not know the hardware compatibility {level}.", "Use ampere+, or TensorRT 10.16 or newer.")
        config.hardware_compatibility_level = member

    def set_version_compatible(self, config: Any) -> None:
        """Let later TensorRT versions run the engine through a lean runtime, which stays outside it: an engine brings no host code."""
        if self.is_rtx:
            raise ConfigError(f"{self} builds no version-compatible engines without a GPU.", "Drop --version-compatible.")
        config.set_flag(self.module.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(self.module.BuilderFlag.EXCLUDE_LEAN_RUNTIME)

    def can_capture(self, context: Any, stream: int, *, dynamic: bool) -> bool:
        """Whether an ``IExecutionContext`` may be captured into a CUDA graph; TensorRT only fails to capture, TensorRT-RTX tells.

        Where the shapes of TensorRT-RTX are dynamic it puts better kernels into later runs, which a captured graph would never see.
        """
        if self.is_rtx and dynamic:
            return False
        return not hasattr(context, "is_stream_capturable") or bool(context.is_stream_capturable(stream))

    def parser_error(self, error: Any) -> str:
        """An ``IParserError`` in words; 8 does not tell the node."""
        told: str = error.desc().strip().rstrip(".")[:200]
        return f"{error.node_operator()} {error.node_name()}: {told}" if hasattr(error, "node_name") else told

    def reads(self, built_with: str, *, version_compatible: bool) -> bool:
        """Whether this version runs an engine of version `built_with`.

        TensorRT reads its own version's engines and, where they are version-compatible, those of earlier versions of its major version
        and of the one before, from 8.6 on; TensorRT-RTX its own release's (the engine compatibility pages of both).
        """
        built = tuple(int(part) for part in re.findall(r"\d+", built_with))
        if not built:
            return False
        if version_compatible and not self.is_rtx:
            near = built[0] == self.number[0] or (built[0], self.number[0]) in _COMPATIBLE_MAJORS
            return near and (8, 6) <= built[: len(self.number)] <= self.number
        length = min(len(built), len(self.number), 3 if self.is_rtx else 4)
        return length >= 2 and built[:length] == self.number[:length]


def _member(capability: Capability) -> str:
    return f"SM{capability[0]}{capability[1]}"


def is_installed(backend: BackendName) -> bool:
    """Whether the backend's module is there, without importing it."""
    return importlib.util.find_spec(_MODULES[backend]) is not None


@functools.lru_cache(maxsize=2)
def load_tensorrt(backend: BackendName) -> TensorRT:
    """Import the backend.

    Raises :class:`MissingDependencyError` where it is not installed or its libraries are missing, :class:`ModelFileError` where it is
    older than 8.6 (TensorRT-RTX: 1.4), :class:`DeviceError` where it is made for a newer CUDA than the driver supports.
    """
    title = TITLES[backend]
    try:
        module = importlib.import_module(_MODULES[backend])
    except ModuleNotFoundError as error:
        if error.name != _MODULES[backend]:
            raise _unusable(backend, error) from None
        raise MissingDependencyError(f"{title} is not installed.", f"Run: {PIP[backend]}") from None
    except (ImportError, OSError, RuntimeError) as error:
        raise _unusable(backend, error) from None
    found = TensorRT(backend, module, module.__version__)
    if found.number < _OLDEST[backend]:
        oldest = ".".join(map(str, _OLDEST[backend]))
        raise ModelFileError(f"{found} is installed, {oldest} or newer was wanted.", f"Upgrade: {PIP[backend]} --upgrade")
    return found


def _unusable(backend: BackendName, error: Exception) -> MissingDependencyError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
    message = f"{TITLES[backend]} is installed but does not load ({reason})."
    return MissingDependencyError(message, f"Run: {PIP[backend]} --force-reinstall")


def check_driver(tensorrt: TensorRT) -> None:
    """Raise :class:`DeviceError` where there is no GPU, or where the driver is too old for the CUDA that `tensorrt` was made for."""
    supported = driver_cuda_version()
    if supported is None or not gpus():
        found = "no NVIDIA driver was found" if supported is None else "the driver shows no GPU"
        mend = "Run it on a machine with a GPU; yolact-deploy doctor tells what is here."
        raise DeviceError(f"{tensorrt} needs a GPU, {found}.", mend)
    wanted = _cuda_major(tensorrt.backend)
    if wanted is not None and supported[0] < wanted:
        driver = f" (driver {_DRIVER_FOR_CUDA[wanted]} or newer)" if wanted in _DRIVER_FOR_CUDA else ""
        raise DeviceError(
            f"The driver supports CUDA {supported[0]}.{supported[1]}, the installed {tensorrt} is made for CUDA {wanted}.",
            f"Update the driver to one for CUDA {wanted}{driver}, or install a TensorRT made for CUDA {supported[0]}.",
        )


def _cuda_major(backend: BackendName) -> int | None:
    """The CUDA that the installed wheel was made for, from its name (``tensorrt-cu13``); None for a TensorRT of the system's."""
    pattern = re.compile(r"tensorrt[-_]rtx[-_]cu(\d+)" if backend == "tensorrt-rtx" else r"tensorrt[-_]cu(\d+)", re.IGNORECASE)
    found = (pattern.match(distribution.name or "") for distribution in metadata.distributions())
    return max((int(match[1]) for match in found if match), default=None)
