"""Benchmarks: one question each, JSON out, peers in the same run."""
