"""Values that an op loses without a NaN, a file for each way, and the watch that measures them all."""
