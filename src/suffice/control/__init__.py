"""The control loop: reads rows of the log and writes decisions as rows.

evidence  rows of the log as audits, labels, pairs, ratings and grades that can be counted
loop      certification of one route, by one of three sources of evidence
compare   versions and arms side by side: rollouts and experiments
jobs      work that one worker at a time repeats, each job continuing where the last one stopped
"""
