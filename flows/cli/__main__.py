"""`python -m flows.cli`, for use if the program `fairway` is not installed."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
