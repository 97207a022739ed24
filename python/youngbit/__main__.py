"""``python -m youngbit`` is the command ``youngbit``."""

from .cli import main

if __name__ == "__main__":
    main()
