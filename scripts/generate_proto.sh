#!/usr/bin/env bash
# Generates Python code and typed stubs from protos/ into folder $2, with the tools in folder $1.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "$1")
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -I protos \
  --python_out="$2" --grpc_python_out="$2" --mypy_out="quiet:$2" --mypy_grpc_out="quiet:$2" \
  protos/llava_grpc/v1/*.proto
