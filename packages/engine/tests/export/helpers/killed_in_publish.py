"""A command of radfuse that is killed while a file of the given name is about to get it."""

KILLED_IN_PUBLISH = """
import os, signal, sys
from ckptcore import durable
from radfuse.engine.cli import run
publish = durable.publish
def killed(temporary, names):
    if names[0].name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temporary, names)
durable.publish = killed
sys.exit(run(sys.argv[2:]))
"""
