"""Exit code 0 if the gRPC server at HOST:PORT says SERVING (grpc.health.v1), 1 if not: for a container's health check.

python healthcheck.py HOST:PORT [SERVICE]
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT = 4.0


def main() -> int:
    """Ask; the exit code. What is wrong goes to standard output, which `docker inspect` shows."""
    address, service = sys.argv[1], "".join(sys.argv[2:])
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT
            )
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}")
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
