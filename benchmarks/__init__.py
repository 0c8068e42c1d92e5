"""Benchmarks: one command each, ratios against peers measured in the same run."""
