"""Shipped for tests of this project and of those who build on it: in-process clusters, small checkpoints."""
