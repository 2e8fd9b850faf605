"""The pages' content as plain records, read from the log and its sums: the same for people and for programs."""
