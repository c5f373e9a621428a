"""What router, model server and client share: refusals, validation, settings, telemetry, gRPC options."""
