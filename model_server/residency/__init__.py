"""Which of its models a server holds where, and moving them: hot, asleep, staged, listed."""
