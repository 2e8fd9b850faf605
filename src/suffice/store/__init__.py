"""The event log: event records, the hash chain over them, the SQLite database, and its readers.

`rows` defines the events, `audit` chains them, `database` stores them, `routes` and `people` fold them into views.
Imports go only from later packages to earlier ones (layers of `pyproject.toml`).
"""
