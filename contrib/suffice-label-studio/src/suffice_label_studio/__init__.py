"""Runs of Suffice as tasks of Label Studio: `suffice export label-studio` and `suffice feedback label-studio`."""
