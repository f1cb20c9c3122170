"""A node's place in the fleets of its controllers, and how it leaves them. For workers, and for controllers that serve
another one as a worker."""
