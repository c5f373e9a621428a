"""The devices that a server computes on: one contract, and what is special to each."""

import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from model_server.engine import DeviceLost
from model_server.gpu import NvmlGpus
from model_server.host import Host
from model_server.record import Device, Usage

pytestmark = pytest.mark.unit


class FakeNvml:
    """As much of the module pynvml as NvmlGpus uses."""

    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_UNKNOWN = 999

    class NVMLError(Exception):
        """pynvml's error."""

        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def __init__(self, gpus: int = 4) -> None:
        self.uuids = [f"GPU-{i}{i}{i}{i}-aaaa" for i in range(gpus)]
        self.busy = [10 * (i + 1) for i in range(gpus)]
        self.used = [20 * (i + 1) for i in range(gpus)]
        self.memory_error: dict[int, int] = {}
        self.busy_error: dict[int, int] = {}

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.uuids):
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid not in self.uuids:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return self.uuids.index(uuid)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.uuids[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if handle in self.memory_error:
            raise self.NVMLError(self.memory_error[handle])
        return SimpleNamespace(used=self.used[handle], total=100)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle in self.busy_error:
            raise self.NVMLError(self.busy_error[handle])
        return SimpleNamespace(gpu=self.busy[handle], memory=0)


def gpus(visible: str | None = None, count: int | None = None) -> tuple[FakeNvml, NvmlGpus]:
    nvml = FakeNvml()
    return nvml, NvmlGpus(nvml, visible, count)


@pytest.fixture(params=[lambda: gpus()[1], Host], ids=["gpus", "host"])
def device(request: pytest.FixtureRequest) -> Device:
    made: Callable[[], Device] = request.param
    return made()


def test_shares_are_shares(device: Device) -> None:
    for _ in range(3):
        usage = device.read()
        assert 0.0 <= usage.utilization <= 1.0
        assert 0.0 < usage.memory_usage <= 1.0


def test_a_device_that_is_there_checks(device: Any) -> None:
    device.check()


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, None, Usage(0.25, 0.5)),
        ("2", None, Usage(0.3, 0.6)),
        ("3,0", None, Usage(0.25, 0.5)),
        ("3,0", 1, Usage(0.4, 0.8)),
        ("GPU-1111-aaaa", None, Usage(0.2, 0.4)),
        ("GPU-11,GPU-00", None, Usage(0.15, 0.3)),
        ("1,-1,0", None, Usage(0.2, 0.4)),
    ],
)
def test_visible_gpus_are_aggregated(visible: str | None, count: int | None, expected: Usage) -> None:
    _, device = gpus(visible, count)
    usage = device.read()
    assert usage.utilization == pytest.approx(expected.utilization)
    assert usage.memory_usage == pytest.approx(expected.memory_usage)


@pytest.mark.parametrize(("visible", "count"), [("9", None), ("GPU-9", None), ("", None), ("-1", None), ("0", 2)])
def test_gpus_that_are_not_there_are_lost(visible: str, count: int | None) -> None:
    with pytest.raises(DeviceLost, match="CUDA_VISIBLE_DEVICES"):
        gpus(visible, count)


def test_a_gpu_off_the_bus_is_lost() -> None:
    nvml, device = gpus("0,1")
    device.check()
    nvml.memory_error[1] = nvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(DeviceLost, match="GPU 1"):
        device.check()
    with pytest.raises(DeviceLost):
        device.read()


def test_one_unknown_error_is_no_loss_and_three_are() -> None:
    nvml, device = gpus("0")
    nvml.memory_error[0] = nvml.NVML_ERROR_UNKNOWN
    device.check()
    device.check()
    with pytest.raises(DeviceLost):
        device.check()


def test_a_gpu_that_does_not_tell_its_utilization_counts_as_idle() -> None:
    nvml, device = gpus("0")
    nvml.busy_error[0] = nvml.NVML_ERROR_NOT_SUPPORTED
    assert device.read() == Usage(0.0, 0.2)


def test_a_busy_child_shows_on_the_host() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    host = Host()
    try:
        host.read()
        deadline = time.monotonic() + 10.0
        while host.read().utilization < 0.05:
            assert time.monotonic() < deadline, "a process that spins takes no share of the cores"
            psutil.Process(child.pid).cpu_percent(interval=0.05)
    finally:
        child.kill()
        child.wait()
    host.read()  # A child that is gone is no error.
