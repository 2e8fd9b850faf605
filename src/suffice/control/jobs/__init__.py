"""Work on the log that one worker at a time does, again and again."""
