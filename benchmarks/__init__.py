"""Benchmarks: what a request costs, side by side in one run, because machines are noisy and ratios are not."""
