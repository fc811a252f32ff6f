"""Other queues, each used as its documentation says, in an environment of its own, for `benchmarks.queues`."""
