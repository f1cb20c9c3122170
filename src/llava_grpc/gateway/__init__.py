"""Front doors for those who do not speak gRPC; each is a client of the controller like any other."""
