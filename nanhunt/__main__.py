"""`python -m nanhunt`."""

from nanhunt.cli import main

if __name__ == "__main__":
    main()
