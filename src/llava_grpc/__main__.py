"""`python -m llava_grpc` is `llava-grpc`."""

from llava_grpc.cli.main import main

if __name__ == "__main__":
    main()
