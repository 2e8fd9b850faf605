"""Closed days of the log as Parquet files in a folder or an object store."""
