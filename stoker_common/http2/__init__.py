"""A gRPC server over HTTP/2 of our own: what all streams of a connection got in a turn of the loop goes out at once.

Why, what it leaves out and what it limits: docs/adr/0150-an-http2-server-of-our-own.md.
"""
