#!/usr/bin/env bash
# Fails when src/llava_grpc/v1 is not what protos/ generate. $1: folder of the tools.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
scripts/generate_proto.sh "$1" "$fresh"
if ! diff -r -x __init__.py -x __pycache__ "$fresh/llava_grpc/v1" src/llava_grpc/v1; then
  echo "src/llava_grpc/v1 is stale: run 'make proto' and commit the result" >&2
  exit 1
fi
echo "generated code is up to date"
