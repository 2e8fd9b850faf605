"""Recorded runs, and what stopping would have saved and lost on them: rooms along the path of the data.

    traces    recorded runs in files, read as columns            all commands below
    logs      other programs' logs, read as calls                suffice estimate, suffice export finetune
    record    full runs, written at a live upstream              suffice record
    study     rules picked on some questions, judged on others   suffice replay
    report    the study told: table, page, plot, JSON            suffice replay
    tune      a search over policies, and its optimism           suffice tune
    online    recorded runs as traffic                           suffice replay --online
    estimate  what stopping would be worth on a log's traffic    suffice estimate
    finetune  runs cut at their stop, with their texts           suffice export finetune

`run` replays single runs of the event log as the live code saw them, and `compare` sets two ways of answering side
by side: the demonstration needs no more. An import never goes from a room to one that stands later on the path.
"""
