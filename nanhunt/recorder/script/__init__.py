"""`nanhunt run`: a training script that knows of no recorder, recorded from inside its own process."""
