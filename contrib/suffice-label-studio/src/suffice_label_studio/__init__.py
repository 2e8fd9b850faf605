"""Exchanges runs with Label Studio: `suffice export label-studio` and `suffice feedback label-studio`."""
