"""The pages' content as plain records, the same for people and for programs.

A view raises StoreError, UnknownNameError for an unknown name, and BadRequest for an invalid query.
"""
