"""Says what a machine cannot do, before the faults begin."""

from tests.chaos.places import why_no_namespaces


def pytest_report_header() -> str:
    why = why_no_namespaces()
    return f"chaos: {why}: only the faults that need no network namespaces, on loopback" if why else "chaos: namespaces"
