"""Engines: what turns a request into tokens. Found by name in the entry-point group ``llava_grpc.engines``."""
