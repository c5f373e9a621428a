"""A model server: an engine behind the API, registered in the catalog while it answers."""
