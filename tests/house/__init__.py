"""Gates of the house: sizes, purity, docs, settings, start-up, packaging. They test the whole tree."""
