"""The event log: what is written, what vouches for it, the file that holds it, and what people and routes read of it.

    rows      what can happen, one frozen record a kind
    audit     the chain over the rows, and what of them is in people's words
    database  the SQLite file: one writer, readers, decisions under a lease, words taken out for good
    routes    what is in force on a route, and how it came to that: folds over the rows
    people    feedback, reviews, incidents, alerts, the audit log as people read it

An import never goes from a room to one that stands later here: layers of `pyproject.toml` hold it.
"""
