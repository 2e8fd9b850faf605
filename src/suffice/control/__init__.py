"""The control loop: from rows of the log to decisions that are written as rows.

evidence  rows of the log as audits, labels, pairs, ratings and grades that can be counted
loop      one route certified, by one of three sources of evidence
compare   versions and arms side by side: rollouts and experiments
jobs      work that one worker at a time repeats, wherever the last one stopped
"""
