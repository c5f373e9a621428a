"""A local mesh: what runs in it, keeping it running, and ending it."""
