"""A model server's settings: names, addresses, the engines' own keys."""

from pathlib import Path

import pytest

from model_server.config import CommandSettings, ServerSettings, check_engine, sim_settings, vllm_settings
from stoker_common.settings import SettingsError, load

pytestmark = pytest.mark.unit


def settings(*flags: str) -> ServerSettings:
    return load(CommandSettings, "model_server", flags, environ={})


def test_the_model_is_served_under_its_folders_name_unless_told() -> None:
    assert settings("--model", "/models/SmolLM2-135M-Instruct").served_model == "SmolLM2-135M-Instruct"
    assert settings("--model", "/models/x", "--model-name", "chat@1").served_model == "chat@1"


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        ((), "127.0.0.1:7"),
        (("--advertise-address", "host-1"), "host-1:7"),
        (("--advertise-address", "host-1:9"), "host-1:9"),
        (("--listen-host", "0.0.0.0", "--advertise-address", "10.0.0.1"), "10.0.0.1:7"),
        (("--listen-host", "::1"), "[::1]:7"),
        (("--advertise-address", "[fd00::1]:9"), "[fd00::1]:9"),
        (("--advertise-address", "[fd00::1]"), "[fd00::1]:7"),
    ],
)
def test_the_advertised_address_is_where_routers_call(flags: tuple[str, ...], address: str) -> None:
    assert settings(*flags).advertised(7) == address


def test_a_wildcard_address_cannot_be_advertised() -> None:
    with pytest.raises(SettingsError, match="advertise_address"):
        settings("--listen-host", "0.0.0.0")


def test_each_engine_gets_its_own_keys() -> None:
    given = settings(
        "--sim-max-streams", "7", "--vllm-dtype", "float32", "--model", "/m/x", "--otlp-endpoint", "h:4317"
    )
    assert sim_settings(given).max_streams == 7
    vllm = vllm_settings(given)
    assert (vllm.model, vllm.served_model_name, vllm.dtype) == ("/m/x", "x", "float32")
    assert vllm.otlp_traces_endpoint == "h:4317"


def test_an_engines_contradictions_are_settings_errors_of_that_engine_alone() -> None:
    flags = ("--sim-max-batched-tokens", "8")
    with pytest.raises(SettingsError, match="max_batched_tokens"):
        check_engine(settings("--engine", "sim", *flags))
    check_engine(settings("--engine", "vllm", *flags))


def test_further_models_are_named_by_their_folder_or_as_told_and_share_the_memory() -> None:
    given = settings("--model", "/m/a", "--models", "chat@2=/m/b,/m/c", "--max-hot", "3")
    assert [(entry.served_model, entry.model) for entry in given.entries] == [
        ("a", "/m/a"),
        ("chat@2", "/m/b"),
        ("c", "/m/c"),
    ]
    assert vllm_settings(given, given.entries[1]).gpu_memory_utilization == pytest.approx(0.3)
    assert vllm_settings(settings("--model", "/m/a")).gpu_memory_utilization == 0.9
    with pytest.raises(SettingsError, match="called alike: a"):
        settings("--model", "/m/a", "--models", "/other/a")


def test_the_file_gives_a_model_a_share_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "stoker.toml"
    file.write_text('[model_server]\nmodel = "/m/a"\n[[model_server.models]]\nmodel = "/m/b"\nshare = 0.25\n')
    given = load(CommandSettings, "model_server", ("--config", str(file)), environ={})
    assert [given.share_of(entry) for entry in given.entries] == [0.9, 0.25]


def test_adapters_belong_to_the_first_model_or_to_the_one_named() -> None:
    models = ("--model", "/m/a", "--models", "chat@2=/m/b")
    given = settings(*models, "--adapters", "x=/ad/x,y=org/y:chat@2", "--max-adapters", "2")
    assert [(each.name, each.adapter, given.base_of(each)) for each in given.adapters] == [
        ("x", "/ad/x", "a"),
        ("y", "org/y", "chat@2"),
    ]
    assert [vllm_settings(given, entry).max_adapters for entry in given.entries] == [2, 2]
    assert sim_settings(given).max_adapters == 2
    alone = settings(*models, "--adapters", "x=/ad/x")
    assert [vllm_settings(alone, entry).max_adapters for entry in alone.entries] == [4, 0], "room only where it is used"
    for wrong, why in (("x=/ad/x:nobody", "one of them"), ("a=/ad/x", "called alike"), ("/ad/x", "adapter")):
        with pytest.raises(SettingsError, match=why):
            settings(*models, "--adapters", wrong)


def test_the_file_gives_adapters_as_tables(tmp_path: Path) -> None:
    file = tmp_path / "stoker.toml"
    file.write_text('[model_server]\nmodel = "/m/a"\n[[model_server.adapters]]\nname = "x:1"\nadapter = "/ad:x"\n')
    given = load(CommandSettings, "model_server", ("--config", str(file)), environ={})
    assert [(each.name, each.adapter, given.base_of(each)) for each in given.adapters] == [("x:1", "/ad:x", "a")]
