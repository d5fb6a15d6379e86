"""`python -m flows.server`: prepare the configured server."""

from flows.server.setup import main

if __name__ == "__main__":
    main()
