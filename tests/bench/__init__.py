"""Benchmarks: figures as ratios against a peer of the same run, never pass or fail."""
