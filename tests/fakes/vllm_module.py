"""Modules of ours that import vLLM."""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from model_server.engines.vllm_settings import VllmSettings, environment


@contextmanager
def vllm_module(name: str) -> Iterator[ModuleType]:
    """The module of `model_server.engines`, in the environment that it wants. vLLM's libraries warn."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in environment(VllmSettings(model="m"), os.environ).items():
            patch.setenv(key, value)
        yield importlib.import_module(f"model_server.engines.{name}")
