"""Replay of recorded runs: what early stopping would have saved and lost on them.

    traces    recorded runs in files, read as columns            all commands below
    logs      other programs' logs, read as calls                suffice estimate
    archive   closed days of the log as files, and back          suffice archive
    record    full runs, recorded at a live upstream             suffice record
    study     policies selected on some questions and judged     suffice replay, suffice tune
              on others: ladders of policies, or a search
    report    a study's result as table, page, plot, JSON        suffice replay
    online    recorded runs as traffic                           suffice replay --online
    estimate  the value of early stopping for a log's traffic    suffice estimate

A module imports only from modules above it.
"""
