import os

# The kernel for a GPU runs in Python here. Triton asks when it is imported, and
# torch imports it.
os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["snippets.pytest_plugin", "pytester"]


def pytest_wrong_answers() -> dict[tuple[str, int], list[str]]:
    from tests.wrong_answers import WRONG

    return WRONG
