"""``python -m benchmarks``: every benchmark, one after another (about two hours on two cores)."""

from benchmarks import checkpoints, demo, loop_overhead, phantom_seeds

if __name__ == "__main__":
    checkpoints.main([])
    demo.main([])
    loop_overhead.main([])
    phantom_seeds.main([])
