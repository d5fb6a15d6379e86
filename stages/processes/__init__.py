"""Process management: child processes, signals, locks, cores, threads and environment."""
