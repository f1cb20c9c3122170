"""The protobuf edge: conversions, statuses, channels, servers. The only floor that sees both pb2 and core."""
