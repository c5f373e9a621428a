"""The catalog: which model servers exist, what they hold, how loaded they are."""
