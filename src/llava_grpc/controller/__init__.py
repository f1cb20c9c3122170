"""The controller: the register of workers, and the one address that clients talk to."""
