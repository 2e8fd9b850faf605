"""Two versions, or the arms of an experiment, on the same evidence."""
