"""A month of made-up traffic for the console: runs and people are drawn, and the real control loop decides on them."""
