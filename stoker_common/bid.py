"""How a router's bid for a server (stoker.v1.Bid) travels, and what a server says that has more to do than that."""

# As gRPC metadata, in bytes; over a link in the message that starts the generation. Servers that are called take none.
METADATA_KEY = "stoker-bid-bin"
# The reason in the refusal.
OUTBID = "OUTBID"
