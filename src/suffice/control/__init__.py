"""The control loop: from rows of the log to decisions that are written as rows.

    evidence  rows of the log as audits, labels, pairs and ratings that can be counted
    loop      one route certified, by one of three sources of evidence
    compare   versions and arms side by side: rollouts and experiments
    people    which runs somebody is asked about, and what a judge model's labels are worth
    jobs      work that one worker at a time does, again and again, wherever the last one stopped

A job reads what is new, shows it to the packages below, and writes what they decide.
"""
