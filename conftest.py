import os

# One thread for torch, before it is imported: the sizes here are small, and on
# a busy machine two threads that wait for each other take fifty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The kernel for a GPU runs in Python here. Triton asks when it is imported, and
# torch imports it.
os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["snippets.pytest_plugin", "pytester"]
