"""How well requests are routed, on simulated servers and virtual time. `python -m bench.routing --help`."""
