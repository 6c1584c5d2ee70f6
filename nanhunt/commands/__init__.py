"""What each command does, a file a command; `cli.py` holds their signatures."""
