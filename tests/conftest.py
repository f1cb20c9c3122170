"""What holds for all tests."""

import signal

# A shell starts its background jobs with SIGINT ignored, and children inherit that: tests that interrupt a process
# would wait for ever under such a shell. What has a handler here starts with the default there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
