pytest_plugins = ["snippets.pytest_plugin", "pytester"]
