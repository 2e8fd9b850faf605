"""Jobs on the log, each repeated by one worker at a time."""
