"""Hypothesis without a deadline an example: on two shared cores it would measure the neighbours."""

from hypothesis import HealthCheck, settings

settings.register_profile("discovery", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("discovery")
