"""The dispatch simulator: the real core in virtual time, against models of workers and of load."""
