"""The engines a model server can run, each in files of its own."""
