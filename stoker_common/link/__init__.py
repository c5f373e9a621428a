"""The worker link's parts that both ends' programs share: routers attach to servers, and clients to either."""
