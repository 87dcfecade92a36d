"""Each figure beside its reference, in one run. See docs/performance.md."""
