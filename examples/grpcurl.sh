#!/bin/sh
# Ask a running fleet about a picture with nothing but grpcurl: the servers describe themselves (reflection).
#
#     examples/grpcurl.sh [PICTURE [QUESTION]]        LLAVA_GRPC_CONTROLLER=HOST:PORT names the controller
set -eu

controller=${LLAVA_GRPC_CONTROLLER:-127.0.0.1:21001}
picture=${1:-$(dirname "$0")/../src/llava_grpc/demo/pictures/four-shapes.png}
question=${2:-Describe the picture.}

grpcurl -plaintext "$controller" llava_grpc.v1.InferenceService/ListModels

# `bytes` travel as base64 in JSON; -d @ reads the request from standard input, where a large picture fits.
printf '{"conversation": {"turns": [{"role": "ROLE_USER", "parts": [
           {"image": {"data": "%s"}}, {"text": "%s"}]}]}}' "$(base64 <"$picture" | tr -d '\n')" "$question" |
    grpcurl -plaintext -d @ "$controller" llava_grpc.v1.InferenceService/Generate
