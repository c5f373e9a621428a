"""The `stoker` command's parts: one file a subcommand, and what they share."""
