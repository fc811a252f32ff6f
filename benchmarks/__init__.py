"""Speed and memory, measured; never part of the tests. Results go to benchmarks/results, findings to docs."""
