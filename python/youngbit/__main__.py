"""``python -m youngbit`` is the command ``youngbit``."""

from .commands.main import main

if __name__ == "__main__":
    main()
