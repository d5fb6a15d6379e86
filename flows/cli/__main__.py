"""`python -m flows.cli`, where the program `fairway` is not installed."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
