"""Replays by several processes: what they agree on after each step, and who leads when something broke."""
