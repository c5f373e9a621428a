"""The GPUs of this server, through NVML: how busy they are, and whether they are still there."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

from model_server.engine import DeviceLost
from model_server.record import Usage

# NVML says "unknown error" of a GPU that fell off the bus, and at times of one that did not.
_UNKNOWN_IN_A_ROW = 3
_LOST = (
    "NVML_ERROR_GPU_IS_LOST",
    "NVML_ERROR_GPU_NOT_FOUND",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_RESET_REQUIRED",
    "NVML_ERROR_DRIVER_NOT_LOADED",
)


class NvmlGpus:
    """Implements `model_server.record.Device`. A read takes about a millisecond a GPU."""

    def __init__(self, nvml: Any, visible: str | None, count: int | None = None) -> None:
        """`nvml`: the module pynvml, initialised. `visible`: CUDA_VISIBLE_DEVICES. `count`: only the first so many.

        Indices are taken in NVML's order, which is CUDA's where CUDA_DEVICE_ORDER is PCI_BUS_ID. Raises DeviceLost if a
        named GPU is not there, or none is.
        """
        self._nvml = nvml
        self._unknown = 0
        self._lost = frozenset(code for name in _LOST if (code := getattr(nvml, name, None)) is not None)
        try:
            handles = _visible_handles(nvml, visible)
        except nvml.NVMLError as error:
            raise DeviceLost(f"NVML finds no GPU for CUDA_VISIBLE_DEVICES={visible!r}: {error}") from error
        self._handles = handles[:count]
        if len(self._handles) < (count or 1):
            raise DeviceLost(
                f"{count or 1} GPUs are needed and CUDA_VISIBLE_DEVICES={visible!r} leaves {len(self._handles)}: "
                "name more of them, or lower vllm_tensor_parallel_size"
            )

    @classmethod
    def open(cls, environ: Mapping[str, str], count: int | None = None) -> Self:
        """The GPUs that CUDA will see in this environment. Raises DeviceLost where NVML does not work."""
        nvml = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise DeviceLost(f"NVML does not start: {error}; is the NVIDIA driver loaded? Try `nvidia-smi`") from error
        return cls(nvml, environ.get("CUDA_VISIBLE_DEVICES"), count)

    def read(self) -> Usage:
        """Mean share of their time in use, and share of their memory, over all of the GPUs. Raises DeviceLost."""
        nvml = self._nvml
        percent = used = total = 0
        for place, handle in enumerate(self._handles):
            try:
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            except nvml.NVMLError as error:
                self._judge(place, error)
                continue
            self._unknown = 0
            used += memory.used
            total += memory.total
            percent += self._busy_percent(place, handle)
        return Usage(
            utilization=min(percent / 100.0 / len(self._handles), 1.0),
            memory_usage=min(used / total, 1.0) if total else 0.0,
        )

    def check(self) -> None:
        """Raise DeviceLost if a GPU is gone."""
        self.read()

    def _busy_percent(self, place: int, handle: Any) -> int:
        """NVML cannot tell for a slice of a GPU (MIG), nor on some virtual ones: 0 then."""
        try:
            return int(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except self._nvml.NVMLError as error:
            self._judge(place, error)
            return 0

    def _judge(self, place: int, error: Any) -> None:
        """Raise DeviceLost if NVML's error means that; what is only a figure it cannot give does not."""
        code = getattr(error, "value", None)
        if code == getattr(self._nvml, "NVML_ERROR_UNKNOWN", None):
            self._unknown += 1
        if code in self._lost or self._unknown >= _UNKNOWN_IN_A_ROW:
            raise DeviceLost(
                f"GPU {place} of this server is gone, says NVML: {error}; see `nvidia-smi` and the kernel's log (Xid)"
            ) from error


def _visible_handles(nvml: Any, visible: str | None) -> Sequence[Any]:
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for name in (part.strip() for part in visible.split(",")):
        if name in ("", "-1"):  # As CUDA: what follows an invalid name is not seen.
            break
        handles.append(_by_index(nvml, int(name)) if name.isdecimal() else _by_uuid(nvml, name))
    return handles


def _by_index(nvml: Any, index: int) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _by_uuid(nvml: Any, name: str) -> Any:
    """CUDA takes the beginning of a UUID where it is unambiguous; NVML wants it whole."""
    for i in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(i)
        if nvml.nvmlDeviceGetUUID(handle).startswith(name):
            return handle
    return nvml.nvmlDeviceGetHandleByUUID(name)
