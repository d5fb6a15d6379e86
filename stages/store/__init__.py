"""Everything in the store, and the keys by which it is found."""
