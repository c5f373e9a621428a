"""What `stoker status` prints of a server."""

from io import StringIO

from rich.console import Console

from stoker.v1 import endpoint_pb2, router_pb2
from stoker_client.cli.status import print_status


def printed(*calibration: router_pb2.Calibration) -> str:
    models = [endpoint_pb2.Model(name=name, residency=endpoint_pb2.RESIDENCY_HOT) for name in ("m", "n")]
    endpoint = router_pb2.EndpointStatus(
        endpoint=endpoint_pb2.Endpoint(server="s1", models=models), calibration=calibration
    )
    seen = router_pb2.StatusResponse(router="r", zones=[router_pb2.ZoneStatus(zone="a", endpoints=[endpoint])])
    out = StringIO()
    print_status(Console(file=out, width=200), seen, "")
    return out.getvalue()


def test_how_far_predictions_were_off_is_told_beside_the_model_they_were_of() -> None:
    shown = printed(router_pb2.Calibration(model="n", requests=64, error=0.31, bias=-0.12))
    (line,) = [line for line in shown.splitlines() if "first token" in line]
    assert "n hot first token off by 31% (-12%), of 64" in line


def test_what_predictions_are_made_of_is_told() -> None:
    shown = printed(
        router_pb2.Calibration(model="n", requests=64, error=0.1, base_ms=31.4, prefill_tokens_per_second=41_500.0)
    )
    assert "of 64; 31 ms and 41,500 tokens/s" in shown


def test_where_nothing_was_asked_nothing_is_told() -> None:
    assert "first token" not in printed()
