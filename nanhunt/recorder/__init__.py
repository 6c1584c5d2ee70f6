"""The flight recorder: it rides along in the user's own loop, and leaves a bundle that replays when something breaks."""
