"""A GPU worker: an engine behind a server, and its place in the fleet."""
