"""``python -m benchmarks``: every benchmark, one after another (about an hour and a half on two cores)."""

from benchmarks import checkpoints, demo, phantom_seeds

if __name__ == "__main__":
    checkpoints.main()
    demo.main([])
    phantom_seeds.main([])
