"""A run that is watched while it is written: what its rows come to so far, its alarms, and the frame that shows them."""
