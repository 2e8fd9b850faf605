"""The demonstration that goes on: from full runs to a certificate, live, and back when the model changes.

`plan` says how long and with which settings, `course` counts what came, `story` runs it, `show` says it.
"""
