"""The command line. Its modules load in an instant: grpc and all that is heavier is imported inside the commands."""
