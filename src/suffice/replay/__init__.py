"""Recorded runs, and what stopping would have saved and lost on them.

    traces    recorded runs in files, read as columns            all commands below
    logs      other programs' logs, read as calls                suffice estimate
    record    full runs, written at a live upstream              suffice record
    study     policies picked on some questions, judged on       suffice replay, suffice tune
              others: ladders of rules, or a search over all
    report    a study's result as table, page, plot, JSON        suffice replay
    online    recorded runs as traffic                           suffice replay --online
    estimate  what stopping would be worth on a log's traffic    suffice estimate

`run` replays single runs of the event log as the live code saw them and compares two ways of answering. Imports only
go up this list.
"""
