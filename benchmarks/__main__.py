"""``python -m benchmarks``: every benchmark, one after another."""

from benchmarks import checkpoints

if __name__ == "__main__":
    checkpoints.main()
