"""Keeps prose and code in step: one parser reads a page; Sybil runs it, MkDocs shows it.

`page` parses, `run` executes (`state` cleans up after it), `compare` judges, `render` checks that
what the reader sees is what was run, `update` rewrites outputs, `ledger` remembers what a run saw,
`gate` holds the built site against it; `markdown_ext`, `katex` and `lab` show what Markdown alone
cannot. `pytest_plugin` and `mkdocs_hook` are the two doors to all of that.
"""
