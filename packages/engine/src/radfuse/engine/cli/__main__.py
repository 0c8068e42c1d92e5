"""`python -m radfuse.engine.cli` is `radfuse`, for machines whose PATH does not have it."""

from radfuse.engine.cli import main

if __name__ == "__main__":
    main()
