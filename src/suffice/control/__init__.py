"""The control loop: reads rows of the log and writes decisions as rows."""
