"""The router: sends each request where its first token will come soonest, and accounts for it."""
