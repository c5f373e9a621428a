"""Tokens a second: vLLM behind a mesh against vLLM alone, a server's front end, and several router processes."""
