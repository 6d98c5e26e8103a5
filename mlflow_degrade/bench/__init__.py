"""The stopwatch: latency, memory, energy, roofline and where each node runs."""
